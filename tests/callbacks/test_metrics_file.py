"""The file of metrics of a run that is resumed."""

from pathlib import Path

from zoo.callbacks.metrics_file import KeepMetricsFile


def test_a_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.2\n1,2")
    assert [row["step"] for row in KeepMetricsFile(tmp_path)._rows] == ["9", "19"]
    assert KeepMetricsFile(tmp_path / "new")._rows == []
