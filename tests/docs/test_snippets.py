"""The code in README and docs runs as it stands, and its commands have the flags that they are given.

Trainings are shortened to two steps. The commands that install are those that the suite runs in.
"""

import re
from pathlib import Path

import pytest
import torch
from paths import ROOT
from PIL import Image
from pytorch_lightning import Trainer
from snippets import read_commands, read_snippets, run_commands, run_snippet

from zoo.cli.arguments import check_flags
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models import FasterRCNN, RetinaNet
from zoo.nn.frame import FrameConfig


def save_run(folder: Path) -> RetinaNet:
    """A run folder with a checkpoint of an untrained detector."""
    torch.manual_seed(0)
    frame = FrameConfig(min_size=64, max_size=128)
    detector = RetinaNet(2, ["cell", "platelet"], trunk="resnet10t", channels=32, frame=frame)
    (folder / "checkpoints").mkdir(parents=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    trainer.strategy.connect(detector)
    trainer.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    return detector


def test_snippet_of_the_readme(tmp_path: Path) -> None:
    save_run(tmp_path / "runs" / "cells" / "retinanet_mobilenetv2_seed0")
    Image.new("RGB", (90, 70), "grey").save(tmp_path / "photo.jpg")
    (snippet,) = read_snippets("README.md")
    run_snippet(snippet, tmp_path)
    assert (tmp_path / "found.jpg").exists()


def test_snippet_of_how_to_detect_objects_is_that_of_the_readme() -> None:
    assert read_snippets("docs/how-to/predict.md") == read_snippets("README.md")


@pytest.mark.slow
def test_snippet_of_an_own_lightning_script(tmp_path: Path) -> None:
    snippet, _ = read_snippets("docs/how-to/python.md")
    run_snippet(snippet + "\nassert same.class_names == tuple(data.class_names)\n", tmp_path)


def test_snippet_of_the_metric_alone(tmp_path: Path) -> None:
    _, snippet = read_snippets("docs/how-to/python.md")
    assert "tensor(0.7000" in run_snippet(snippet, tmp_path)


VALUES = ("--model.", "--data.", "--trainer.")
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))]
HELP = dict(
    re.findall(r"## zoo (\w+)\n\n```text\n(.*?)```", (ROOT / "docs/reference/commands.md").read_text(), re.DOTALL)
)


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_verbs_and_flags_that_exist(page: str) -> None:
    for verb, *words in read_commands(page):
        assert verb in HELP, verb
        for word in words:
            flag = re.sub(r"\+?=.*", "", word)
            if flag.startswith(VALUES):
                check_flags("fit", [flag], has_own_model=False)
            elif flag.startswith("--"):
                assert re.search(rf"{flag}\b", HELP[verb]), (verb, flag)


def shorten(commands: str) -> str:
    """The commands with trainings of two steps, which give no score thresholds, and without those that install."""
    kept = [line for line in commands.splitlines() if not line.startswith(("make ", "source ", "git "))]
    short = re.sub(r"--(images|minutes) \d+", "--steps 2", "\n".join(kept))
    short = re.sub(r"--thresholds \S+", "", short)
    return re.sub(r"(zoo compare (?!.*--steps)[^#\n]*)", r"\1 --steps 2 ", short)


@pytest.mark.slow
def test_tutorials_from_images_to_a_verdict_and_fine_tuning(tmp_path: Path) -> None:
    (snippet,) = read_snippets("docs/tutorials/your-images.md")
    run_snippet(snippet, tmp_path)
    for page in ("your-images", "fine-tuning"):
        for commands in read_snippets(f"docs/tutorials/{page}.md", "sh"):
            run_commands(shorten(commands), tmp_path)
    for file in ("runs/mine/report.html", "runs/sizes/report.html", "runs/faster_rcnn.onnx"):
        assert (tmp_path / file).stat().st_size > 10_000
    assert (tmp_path / "runs/found/predictions.json").exists()  # empty after two steps


@pytest.mark.slow
def test_commands_of_the_readme(tmp_path: Path) -> None:
    (snippet,) = read_snippets("docs/tutorials/your-images.md")
    run_snippet(snippet.replace("data/mine", "data/cells"), tmp_path)
    for commands in read_snippets("README.md", "sh"):
        run_commands(shorten(commands), tmp_path)
    assert (tmp_path / "runs/cells/report.html").exists()


def test_lightning_s_load_from_checkpoint(tmp_path: Path) -> None:
    saved = save_run(tmp_path)
    file = tmp_path / "checkpoints" / "best.ckpt"
    for loaded in (RetinaNet.load_from_checkpoint(file), Detector.load_from_checkpoint(str(tmp_path))):
        assert type(loaded) is RetinaNet
        assert not loaded.training
        assert loaded.class_names == ("cell", "platelet")
        state = loaded.state_dict()
        assert all(torch.equal(state[name], value) for name, value in saved.state_dict().items())
    with pytest.raises(InputError, match="has a detector 'RetinaNet'; expected FasterRCNN"):
        FasterRCNN.load_from_checkpoint(file)
