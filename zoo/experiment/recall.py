"""How many objects of a data set its region proposals find; on the way the cache of the proposals is filled."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.data.dataset import DetectionDataset
from zoo.data.module import DetectionDataModule, Split
from zoo.ops.boxes import pairwise_iou

IOU_THRESHOLDS = (0.5, 0.7)
SIZES = {"all": (0.0, math.inf), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
"""COCO's, in pixels^2: from the first number on, below the second."""


@dataclass(frozen=True)
class Recall:
    """What the proposals of a split find; crowds and difficult objects are not counted.

    Args:
        num_images: of the split.
        mean_proposals: of an image.
        num_objects: by size.
        found: part of the objects that some proposal overlaps by an IoU at least, by that IoU and size; NaN where there
            is no object.
    """

    num_images: int
    mean_proposals: float
    num_objects: dict[str, int]
    found: dict[tuple[float, str], float]


def measure_recall(
    data: DetectionDataModule, split: Split, num_workers: int, watch: Callable[[DataLoader], Iterable[Any]] = iter
) -> Recall:
    """Proposals of each image of a split, from the cache or computed, against its objects.

    Args:
        data: whose `proposals` say how to search.
        split: of that data.
        num_workers: processes that search; 0: this one.
        watch: goes through the loader's items, for a progress bar.

    Raises:
        InputError: the split, or an image of it, cannot be read.
    """
    images = DetectionDataset(data.table(split), data.sources[split], propose=data.proposer())
    return recall_of(images, num_workers, watch)


def recall_of(
    images: DetectionDataset, num_workers: int, watch: Callable[[DataLoader], Iterable[Any]] = iter
) -> Recall:
    """As `measure_recall`, for images whose targets carry proposals."""
    loader = DataLoader(_Overlaps(images), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)
    found = list(watch(loader))
    counts = [count for count, _ in found]
    objects = torch.tensor([pair for _, pairs in found for pair in pairs], dtype=torch.float64).reshape(-1, 2)
    return summarise(counts, objects[:, 0], objects[:, 1])


def summarise(counts: Sequence[int], overlaps: Float[Tensor, "M"], areas: Float[Tensor, "M"]) -> Recall:
    """Recall by IoU and size.

    Args:
        counts: proposals of each image.
        overlaps: each object's highest IoU with a proposal.
        areas: of each object, pixels^2.
    """
    of_size = {name: overlaps[(areas >= low) & (areas < high)] for name, (low, high) in SIZES.items()}
    found = {
        (threshold, name): float((some >= threshold).double().mean())
        for threshold in IOU_THRESHOLDS
        for name, some in of_size.items()
    }
    mean = sum(counts) / max(len(counts), 1)
    return Recall(len(counts), mean, {name: len(some) for name, some in of_size.items()}, found)


def recall_table(recalls: dict[Split, Recall]) -> Table:
    """Sets recall out for a terminal; `-` where there is no object."""
    table = Table()
    for name in ("split", "images", "proposals", "IoU", *SIZES):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, recall in recalls.items():
        for threshold in IOU_THRESHOLDS:
            values = [recall.found[threshold, name] for name in SIZES]
            shown = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
            first = threshold == IOU_THRESHOLDS[0]
            facts = (split, str(recall.num_images), f"{recall.mean_proposals:.0f}") if first else ("", "", "")
            table.add_row(*facts, f"{threshold}", *shown, end_section=threshold == IOU_THRESHOLDS[-1])
    return table


class _Overlaps(Dataset[tuple[int, list[tuple[float, float]]]]):
    """Of each image how many proposals it has, and of each object its best IoU with them and its area."""

    def __init__(self, images: DetectionDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, list[tuple[float, float]]]:
        _, target = self.images[index]
        counts = ~(target["iscrowd"] | target["difficult"])
        overlaps = pairwise_iou(target["boxes"][counts][None], target["proposals"][None])[0].amax(dim=1)
        return len(target["proposals"]), list(zip(overlaps.tolist(), target["area"][counts].tolist(), strict=True))


def _as_it_is(sample: Any) -> Any:
    return sample
