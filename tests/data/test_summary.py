"""What is said of a split before training, and which splits are refused."""

from pathlib import Path

import numpy as np
import pytest
from paths import SHARED_CASES

from zoo.cli.main import main
from zoo.data.summary import check_objects, describe_split, is_mostly_empty
from zoo.data.table import AnnotationTable
from zoo.errors import InputError


def make_table(counts: list[int], crowds: int = 0, folder: Path | None = None) -> AnnotationTable:
    """Images with these numbers of objects, of which the first are crowds."""
    total = sum(counts)
    return AnnotationTable.from_rows(
        classes=("nut", "bolt"),
        image_ids=np.arange(len(counts)),
        widths=np.full(len(counts), 100),
        heights=np.full(len(counts), 100),
        file_names=[f"{index}.jpg" for index in range(len(counts))],
        folders=() if folder is None else (str(folder),),
        folder_ids=None if folder is None else np.zeros(len(counts), np.int64),
        image_index=np.repeat(np.arange(len(counts)), counts),
        boxes=np.tile([10.0, 10, 20, 20], (total, 1)),
        labels=np.arange(total) % 2,
        iscrowd=np.arange(total) < crowds,
    )


def test_description_of_a_split() -> None:
    assert describe_split("train", make_table([2, 1])) == "train: 2 images, 3 objects of 2 classes"
    text = describe_split("val", make_table([1, 0, 0], crowds=1))
    assert text.startswith("val: 3 images, 1 object of 2 classes, 1 of them crowds or difficult")
    assert text.endswith("2 images without objects")


def test_mostly_empty_splits_are_suspicious() -> None:
    assert is_mostly_empty(make_table([0] * 9 + [1]))
    assert not is_mostly_empty(make_table([0] * 8 + [1, 1]))
    assert "are their labels found?" in describe_split("train", make_table([0] * 19 + [1]))


def test_splits_without_objects_are_refused(tmp_path: Path) -> None:
    check_objects("train", make_table([0, 1]))
    with pytest.raises(InputError, match="the train split has no images"):
        check_objects("train", make_table([]))
    with pytest.raises(InputError, match="none of the 2 images of the val split has an object; `zoo doctor`"):
        check_objects("val", make_table([0, 0]))
    with pytest.raises(InputError, match="all 2 objects of the test split are crowds or difficult"):
        check_objects("test", make_table([2], crowds=2))
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "Labels").mkdir()
    with pytest.raises(InputError, match=r"are the annotations in .*Labels\?"):
        check_objects("train", make_table([0], folder=tmp_path / "images" / "train"))


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="../shared/cases is absent")
@pytest.mark.parametrize("case", ["c43_no_labels_found", "c74_coco_empty_train", "c76_empty_train_json"])
def test_shared_cases_without_objects_are_refused_before_training(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--data", str(SHARED_CASES / case), "--epochs", "1", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train split" in error
    assert not (tmp_path / "out").exists()
