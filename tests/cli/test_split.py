from pathlib import Path

import pytest
from PIL import Image

from zoo.cli.main import main


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Twenty images with xml files beside them, without splits."""
    folder = tmp_path / "my export"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (40, 30), (number * 11, 90, 200 - number * 9)).save(folder / f"pic {number}.JPG")
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
        thing = f"<object><name>{'nut' if number % 2 else 'bolt'}</name>{box}</object>"
        (folder / f"pic {number}.xml").write_text(f"<annotation>{thing}</annotation>")
    return folder


def test_split_writes_a_data_configuration(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["split", str(export), "--out", str(out), "--fractions", ".6", ".2", ".2", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "train: 12 images, 12 objects\nval: 4 images, 4 objects\ntest: 4 images, 4 objects\n" in printed
    assert f"20 groups of images; data configuration: {out / 'data.yaml'}" in printed
    assert main(["doctor", str(out / "data.yaml")]) == 0
    assert main(["stats", str(out / "data.yaml")]) == 0
    assert "name: my export" in (out / "data.yaml").read_text()


def test_data_without_splits_name_the_verb(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--data", str(export)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the splits are all; write a data configuration" in error
    assert f"or divide the images: zoo split '{export}' --out DIR" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "{}"], "exists and is not an empty folder"),
        (["--out", "new", "--fractions", "x"], "invalid float value"),
        (["--out", "new", "--fractions", ".5", ".6"], "they must add up to 1"),
        (["--out", "new", "--group", "("], "is not a regular expression"),
        (["--out", "new", "--group", "^(pic)"], "20 images are 1 groups, too few for 3 splits"),
    ],
)
def test_bad_arguments(
    export: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(export.parent)
    assert main(["split", str(export), *(argument.format(export) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not Path("new").exists()
