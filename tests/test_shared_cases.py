"""`zoo doctor`, `zoo stats` and `zoo compare --epochs 1` on every small input that users' tools write."""

from pathlib import Path

import pytest
from paths import SHARED_CASES
from tiny_data import model_config, write_yaml
from tiny_detector import TinyDetector

import zoo.experiment.comparison
import zoo.models
from zoo.cli.main import main
from zoo.experiment import run as run_module

CASES = sorted(path.name for path in SHARED_CASES.iterdir() if path.is_dir()) if SHARED_CASES.exists() else ["absent"]
ERRORS = {"c11_pixel_coordinates", "c30_xyxy_bbox", "c43_no_labels_found", "c65_bbox_not_its_polygon"}
ERRORS |= {"c74_coco_empty_train", "c75_predict_then_evaluate", "c76_empty_train_json"}
"""Cases with errors that the doctor lists."""
REFUSED = {
    "c11_pixel_coordinates": "coordinates above 1",
    "c18_labelimg_folders": "zoo split",
    "c30_xyxy_bbox": "x1 y1 x2 y2",
    "c39_cvat_default": "zoo split",
    "c43_no_labels_found": "has an object",
    "c01_ls_windows_names": "zoo split",
    "c58_cvat_yolo_1_1": "has no test or val images; name them in the data configuration, or divide the images",
    "c74_coco_empty_train": "has an object",
    "c76_empty_train_json": "no images",
    "m05_150_objects": "has no train images",
}
"""Cases that `zoo compare` does not train on -> a part of its one line."""

pytestmark = pytest.mark.skipif(not SHARED_CASES.exists(), reason="../shared/cases is absent")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
    monkeypatch.setattr(zoo.experiment.comparison, "launch_fork", run_module.main)
    monkeypatch.setattr(zoo.experiment.comparison, "warm_up", lambda: None)
    monkeypatch.setattr(run_module, "LATENCY_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "model.yaml", model_config())
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_doctor_and_statistics(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(SHARED_CASES / case)]) == (1 if case in ERRORS else 0)
    assert main(["stats", str(SHARED_CASES / case)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_comparison(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", "model.yaml", "--epochs", "1", "--out", "out", "--data.num_workers", "0"]
    code = main(["compare", "--data", str(SHARED_CASES / case), *arguments])
    captured = capsys.readouterr()
    if case in REFUSED:
        assert code == 2
        assert captured.err.count("\n") == 1
        assert REFUSED[case] in captured.err
        assert not (folder / "out").exists()
    else:
        assert code == 0, captured.err
        assert "train: " in captured.out
        assert (folder / "out/report.html").exists()
