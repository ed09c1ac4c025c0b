"""The Python snippets of README and docs run as they stand."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from snippets import read_snippets, run_snippet

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
    save_run(tmp_path / "runs" / "cells" / "retinanet_r18_seed0")
    Image.new("RGB", (90, 70), "grey").save(tmp_path / "photo.jpg")
    (snippet,) = read_snippets("README.md")
    run_snippet(snippet, tmp_path)
    assert (tmp_path / "found.jpg").exists()


@pytest.mark.slow
def test_snippet_of_an_own_lightning_script(tmp_path: Path) -> None:
    (snippet,) = read_snippets("docs/python.md")
    run_snippet(snippet + "\nassert same.class_names == tuple(data.class_names)\n", tmp_path)


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
