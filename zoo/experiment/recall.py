"""Recall of the region proposals of a data set; computing it also fills the proposal cache."""

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
"""COCO's ranges of object area in pixels^2: [low, high)."""


@dataclass(frozen=True)
class Recall:
    """Recall of the proposals of a split; crowds and difficult objects are not counted.

    Args:
        num_images: images of the split.
        mean_proposals: mean number of proposals per image.
        num_objects: number of objects by size.
        found: share of the objects that a proposal overlaps by at least an IoU, by (IoU, size); NaN where there is no
            object.
    """

    num_images: int
    mean_proposals: float
    num_objects: dict[str, int]
    found: dict[tuple[float, str], float]


def measure_recall(
    data: DetectionDataModule, split: Split, num_workers: int, progress: Callable[[DataLoader], Iterable[Any]] = iter
) -> Recall:
    """Recall of the proposals of a split, which are read from the cache or computed.

    Args:
        data: `data.proposals` configures the search.
        split: a split of `data`.
        num_workers: processes that search; 0: this one.
        progress: wraps the iteration over the loader, for a progress bar.

    Raises:
        InputError: the split, or an image of it, cannot be read.
    """
    images = DetectionDataset(data.table(split), data.sources[split], propose=data.proposer())
    return dataset_recall(images, num_workers, progress)


def dataset_recall(
    images: DetectionDataset, num_workers: int, progress: Callable[[DataLoader], Iterable[Any]] = iter
) -> Recall:
    """Recall of the proposals that a data set's targets contain; see `measure_recall`."""
    loader = DataLoader(_Overlaps(images), batch_size=None, num_workers=num_workers, collate_fn=_identity)
    found = list(progress(loader))
    counts = [count for count, _ in found]
    objects = torch.tensor([pair for _, pairs in found for pair in pairs], dtype=torch.float64).reshape(-1, 2)
    return compute_recall(counts, objects[:, 0], objects[:, 1])


def compute_recall(counts: Sequence[int], overlaps: Float[Tensor, " M"], areas: Float[Tensor, " M"]) -> Recall:
    """Recall by IoU and size.

    Args:
        counts: number of proposals of each image.
        overlaps: each object's highest IoU with a proposal.
        areas: area of each object, pixels^2.
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
    """Terminal table of recall by split, IoU and size; `-` where there is no object."""
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
    """For each image, the number of proposals and, per object, (highest IoU with a proposal, area)."""

    def __init__(self, images: DetectionDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, list[tuple[float, float]]]:
        _, target = self.images[index]
        counts = ~(target["iscrowd"] | target["difficult"])
        overlaps = pairwise_iou(target["boxes"][counts][None], target["proposals"][None])[0].amax(dim=1)
        return len(target["proposals"]), list(zip(overlaps.tolist(), target["area"][counts].tolist(), strict=True))


def _identity(sample: Any) -> Any:
    return sample
