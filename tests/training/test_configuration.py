"""Class paths in configurations: names, full paths, classes of a user's own, and the errors about them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.cli import LightningArgumentParser
from tiny_data import write_yaml

from zoo.callbacks import MovingAverage, TorchCompile
from zoo.cli.main import main
from zoo.data.formats.coco import Coco
from zoo.data.formats.shapes import Shapes
from zoo.data.formats.voc import Voc
from zoo.data.formats.yolo import Yolo
from zoo.data.images import ImageFolder
from zoo.detector import SCORE_THRESHOLD
from zoo.errors import InputError
from zoo.models import MODELS
from zoo.training.configuration import build_data, first_difference, instantiate, make_parser, parse

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL_FILES = sorted((CONFIGS / "models").glob("*.yaml"))
SOURCES = {
    Coco: {"annotations": "a.json", "images": "images"},
    ImageFolder: {"paths": ["images"]},
    Shapes: {"num_images": 3, "seed": 1},
    Voc: {"roots": ["VOC2007"], "split": "train"},
    Yolo: {"data": "data.yaml", "split": "train"},
}
DATA = ["--data.train", "Shapes", "--data.train.num_images", "2"]


def full_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# ------------------------------------------------------------------------------------------------- names and full paths


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    return make_parser()


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.stem)
def test_model_files_parse_to_their_detector(file: Path, parser: LightningArgumentParser) -> None:
    key = max((key for key in MODELS if file.stem.startswith(f"{key}_")), key=len)
    assert yaml.safe_load(file.read_text())["class_path"] == MODELS[key].__name__
    assert parse(parser, ["--model", str(file)]).model.class_path == full_path(MODELS[key])


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.stem)
def test_all_detectors_are_measured_from_one_score_threshold(file: Path, parser: LightningArgumentParser) -> None:
    assert parse(parser, ["--model", str(file)]).model.init_args.score_threshold == SCORE_THRESHOLD == 0.001


def test_every_detector_has_a_model_file() -> None:
    classes = {yaml.safe_load(file.read_text())["class_path"] for file in MODEL_FILES}
    assert classes == {cls.__name__ for cls in MODELS.values()}


@pytest.mark.parametrize("key", MODELS)
def test_a_detector_by_name_and_by_full_path_is_the_same(key: str, tmp_path: Path) -> None:
    name, full, exported = MODELS[key].__name__, full_path(MODELS[key]), f"zoo.models.{MODELS[key].__name__}"
    content = yaml.safe_load((CONFIGS / "models" / f"{key}_tiny.yaml").read_text())
    dumps = []
    for class_path in (name, full, exported):
        write_yaml(tmp_path / "model.yaml", content | {"class_path": class_path})
        parser = make_parser()
        config = parse(parser, ["--model", str(tmp_path / "model.yaml"), *DATA])
        dumps.append(parser.dump(config))
    assert dumps[0] == dumps[1] == dumps[2]
    assert type(instantiate(parser, config).model) is MODELS[key]


@pytest.mark.parametrize("cls", SOURCES)
def test_a_source_by_name_and_by_full_path_is_the_same(cls: type, tmp_path: Path) -> None:
    built = []
    for class_path in (cls.__name__, full_path(cls)):
        data = {"train": {"class_path": class_path, "init_args": SOURCES[cls]}}
        write_yaml(tmp_path / "data.yaml", data)
        config = parse(make_parser(), ["--data", str(tmp_path / "data.yaml")])
        assert config.data.train.class_path == full_path(cls)
        built.append(build_data(data, tmp_path / "data.yaml").sources["train"])
    assert type(built[0]) is type(built[1]) is cls
    assert vars(built[0]) == vars(built[1])


def test_the_configuration_of_a_run_can_be_read_again(tmp_path: Path) -> None:
    """With the full paths that a run writes, and with names in their place."""
    parser, file = make_parser(), tmp_path / "config.yaml"
    config = parse(parser, ["--model", "RetinaNet", "--trainer.callbacks+=TorchCompile", *DATA])
    written = parser.dump(config, skip_unset=False)
    assert all(full_path(cls) in written for cls in (MODELS["retinanet"], Shapes, TorchCompile))
    for text in (written, re.sub(r"class_path: zoo\..*\.", "class_path: ", written)):
        file.write_text(text)
        again = parser.dump(parse(make_parser(), ["--config", str(file)]), skip_unset=False)
        assert first_difference(yaml.safe_load(again), yaml.safe_load(written)) is None
    assert "class_path: RetinaNet\n" in text


# ------------------------------------------------------------------------------------------------------------ callbacks


def test_callbacks_are_added_by_name() -> None:
    parser = make_parser()
    added = ["--trainer.callbacks+=MovingAverage", "--trainer.callbacks.decay=0.9"]
    added += ["--trainer.callbacks+=zoo.callbacks.TorchCompile"]
    added += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/AP"]
    callbacks = instantiate(parser, parse(parser, [*DATA, *added])).trainer.callbacks
    assert [type(callback) for callback in callbacks] == [MovingAverage, TorchCompile, EarlyStopping]
    assert callbacks[0].decay == 0.9


def test_a_single_callback_and_those_of_a_file(tmp_path: Path) -> None:
    parser = make_parser()
    callback = instantiate(parser, parse(parser, [*DATA, "--trainer.callbacks", "MovingAverage"])).trainer.callbacks
    assert type(callback) is MovingAverage
    write_yaml(tmp_path / "trainer.yaml", {"callbacks": [{"class_path": "MovingAverage", "init_args": {"decay": 0.5}}]})
    config = parse(parser, [*DATA, "--trainer", str(tmp_path / "trainer.yaml")])
    assert [callback.decay for callback in instantiate(parser, config).trainer.callbacks] == [0.5]


# ---------------------------------------------------------------------------------------------- classes of a user's own


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module on sys.path with a detector, a source and a callback of a user's own."""
    text = """
from pytorch_lightning import Callback
from zoo.data.formats.shapes import Shapes
from zoo.models.retinanet import RetinaNet

class OwnDetector(RetinaNet): pass
class OwnSource(Shapes): pass
class OwnCallback(Callback): pass
"""
    (tmp_path / "own_classes.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_classes"


def test_own_classes_by_full_path(module: str) -> None:
    parser = make_parser()
    own = ["--model", f"{module}.OwnDetector", "--model.trunk", "resnet10t", "--model.channels", "16"]
    own += ["--data.train", f"{module}.OwnSource", "--data.train.num_images", "2"]
    config = parse(parser, [*own, f"--trainer.callbacks+={module}.OwnCallback"])
    assert config.model.class_path == f"{module}.OwnDetector"
    built = instantiate(parser, config)
    objects = [built.model, built.data.sources["train"], *built.trainer.callbacks]
    assert [full_path(type(item)) for item in objects] == [
        f"{module}.{name}" for name in ("OwnDetector", "OwnSource", "OwnCallback")
    ]


def test_a_name_of_two_classes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    full_paths = [f"{name}.SameName" for name in ("first_module", "second_module")]
    for path in full_paths:
        text = "from pytorch_lightning import Callback\nclass SameName(Callback): pass\n"
        (tmp_path / f"{path.partition('.')[0]}.py").write_text(text)
        parse(make_parser(), [f"--trainer.callbacks+={path}"])  # imports the module
    with pytest.raises(InputError) as raised:
        parse(make_parser(), ["--trainer.callbacks+=SameName"])
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in (*full_paths, "full class path"))


# ---------------------------------------------------------------------------------------------------------- wrong names

DETECTORS = [cls.__name__ for cls in MODELS.values()]
READERS = [cls.__name__ for cls in SOURCES]
CALLBACKS = ["MovingAverage", "TorchCompile", "EarlyStopping"]


@pytest.mark.parametrize(
    ("content", "place", "wrong", "names"),
    [
        ({"model": {"class_path": "Retinanet"}}, "model", "Retinanet", DETECTORS),
        ({"model": {"class_path": "Coco"}}, "model", "Coco", DETECTORS),
        ({"data": {"test": {"class_path": "COCO"}}}, "data.test", "COCO", READERS),
        (
            {"trainer": {"callbacks": [{"class_path": "TorchCompiler"}]}},
            "trainer.callbacks",
            "TorchCompiler",
            CALLBACKS,
        ),
    ],
)
def test_a_wrong_name_in_a_file_is_one_line(
    content: dict[str, dict[str, object]],
    place: str,
    wrong: str,
    names: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (part, inner), *_ = content.items()
    write_yaml(tmp_path / "part.yaml", inner)
    write_yaml(tmp_path / "config.yaml", content)
    for given in ([f"--{part}", str(tmp_path / "part.yaml")], ["--config", str(tmp_path / "config.yaml")]):
        assert main(["fit", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{place}: no class is named '{wrong}'; " in line
        assert "give one of " in line
        assert all(name in line.replace(",", "").split() for name in names)


@pytest.mark.parametrize(
    ("args", "place", "wrong"),
    [
        (["--model", "Retinanet"], "model", "Retinanet"),
        (["--model=configs_models_retinanet"], "model", "configs_models_retinanet"),
        (["--data.train", "Cocoo"], "data.train", "Cocoo"),
        (["--data.val.class_path=Cocoo"], "data.val", "Cocoo"),
        (["--trainer.callbacks", "Average"], "trainer.callbacks", "Average"),
        (["--trainer.callbacks+=Average"], "trainer.callbacks", "Average"),
    ],
)
def test_a_wrong_name_on_the_command_line(
    args: list[str], place: str, wrong: str, parser: LightningArgumentParser
) -> None:
    with pytest.raises(
        InputError, match=f"^{place}: no class is named '{wrong}'; [^\n]*give one of [^\n]* of your own$"
    ):
        parse(parser, args)


def test_a_wrong_name_in_the_data_of_a_run() -> None:
    with pytest.raises(
        InputError, match=r"^config.yaml: data: data.train: no class is named 'Cocoo'; did you mean Coco\? give one of"
    ):
        build_data({"train": {"class_path": "Cocoo"}}, Path("config.yaml"))


# -------------------------------------------------------------------------------------------------------------- imports


def test_statistics_of_a_data_file_import_no_detectors(tmp_path: Path) -> None:
    write_yaml(tmp_path / "data.yaml", {"train": {"class_path": "Shapes", "init_args": {"num_images": 2}}})
    code = "import sys; from zoo.cli.main import main; sys.exit(main(sys.argv[1:]) or 'zoo.models' in sys.modules)"
    command = [sys.executable, "-c", code, "stats", str(tmp_path / "data.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
