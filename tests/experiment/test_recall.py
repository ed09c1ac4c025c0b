"""Recall of proposals against values by hand and a slow loop; the cache is filled afterwards."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import zoo.proposals
from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.data.table import AnnotationTable
from zoo.experiment.recall import compute_recall, measure_recall, recall_table
from zoo.proposals import SelectiveSearch, propose

SEARCH = SelectiveSearch("single", width=None, min_side=8, limit=50)


def test_compute_recall_by_hand() -> None:
    overlaps = torch.tensor([0.9, 0.5, 0.7, 0.69, 0.1])
    areas = torch.tensor([10.0, 1023, 1024, 9215, 9216])
    recall = compute_recall([3, 5], overlaps, areas)
    assert (recall.num_images, recall.mean_proposals) == (2, 4)
    assert recall.num_objects == {"all": 5, "small": 2, "medium": 2, "large": 1}
    assert {name: recall.found[0.5, name] for name in recall.num_objects} == pytest.approx(
        {"all": 4 / 5, "small": 1, "medium": 1, "large": 0}
    )
    assert {name: recall.found[0.7, name] for name in recall.num_objects} == pytest.approx(
        {"all": 2 / 5, "small": 1 / 2, "medium": 1 / 2, "large": 0}
    )


def test_recall_without_objects_is_nan() -> None:
    recall = compute_recall([], torch.zeros(0), torch.zeros(0))
    assert recall.mean_proposals == 0
    assert all(math.isnan(value) for value in recall.found.values())
    stream = io.StringIO()
    Console(file=stream).print(recall_table({"val": recall}))
    assert stream.getvalue().count(" - ") == 8


class Flagged(Shapes):
    """Shapes whose first object is a crowd, and whose second is difficult."""

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        table = super().read(strict, classes)
        columns = {name: getattr(table, name) for name in table.__dataclass_fields__}
        for row, name in enumerate(("iscrowd", "difficult")):
            columns[name] = columns[name].copy()
            columns[name][row] = True
        return AnnotationTable(**columns)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_measure_recall_against_a_slow_loop(num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Flagged(5, seed=4)
    data = DetectionDataModule(val=source, proposals=SEARCH, proposal_cache=str(tmp_path))
    seen: list[int] = []

    def progress(loader: Iterable[Any]) -> Iterator[Any]:
        for item in loader:
            seen.append(1)
            yield item

    recall = measure_recall(data, "val", num_workers, progress)
    assert len(seen) == 5
    table = source.read()
    hits, objects, proposals = 0, 0, 0
    for index in range(5):
        target, found = table.target(index), propose(source.load_image(table, index), SEARCH).tolist()
        proposals += len(found)
        for number, (x1, y1, x2, y2) in enumerate(target["boxes"].tolist()):
            if target["iscrowd"][number] or target["difficult"][number]:
                continue
            objects += 1
            for a1, b1, a2, b2 in found:
                width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
                inside = max(width, 0) * max(height, 0)
                if inside / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inside) >= 0.7:
                    hits += 1
                    break
    assert objects == len(table.labels) - 2
    assert recall.found[0.7, "all"] == pytest.approx(hits / objects)
    assert recall.mean_proposals == pytest.approx(proposals / 5)

    def forbidden(image: Tensor, search: SelectiveSearch) -> Tensor:
        raise AssertionError("everything is in the cache")

    monkeypatch.setattr(zoo.proposals, "propose", forbidden)
    assert measure_recall(data, "val", 0).found == pytest.approx(recall.found, nan_ok=True)
