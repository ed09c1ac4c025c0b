"""Errors of the parser in the words of a user."""

from pathlib import Path

import pytest
from tiny_data import write_yaml

from zoo.errors import InputError
from zoo.io.configurations import model_files
from zoo.training.configuration import instantiate, make_parser, parse

MODEL = ["--model", str(model_files()["retinanet_tiny"])]
DATA = ["--data.train", "Shapes", "--data.train.num_images", "2"]
INNARDS = (
    "Expected",
    "typing",
    "<class",
    "<locals>",
    "Subtypes",
    "Parser key",
    "Namespace",
    "class_path '",
    "NoneType",
)


def message_of(args: list[str]) -> str:
    parser = make_parser()
    with pytest.raises(InputError) as caught:
        instantiate(parser, parse(parser, args))
    text = str(caught.value)
    assert not [word for word in INNARDS if word in text]
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trainer.max_epochs", "x"], "trainer.max_epochs: is 'x'; it must be a whole number"),
        (["--model.norm", "froz"], "model.norm: is 'froz'; it must be one of batch, frozen"),
        (["--trainer.precision", "12"], "trainer.precision: is '12'; it must be one of 64, 32, 16, "),
        (["--data.augment.flip", "maybe"], "data.augment.flip: is 'maybe'; it must be true or false"),
        (["--model.recipe.milestones", "3"], "model.recipe.milestones: is '3'; it must be a list"),
        (["--model.frame.mean", "[1,2]"], "model.frame.mean: is '[1, 2]'; it must be a list of 3 values"),
        (
            ["--model.recipe.norm_weight_decay", "much"],
            "model.recipe.norm_weight_decay: is 'much'; it must be a number",
        ),
        (["--trainer.gradient_clip_val", "big"], "is 'big'; it must be a whole number or a number"),
        (["--model.frame.min_size", "-3"], "min_size -3, max_size 512: must be 0 < min_size <= max_size"),
        (["--data.train.num_imagess", "3"], "data.train: Shapes has no 'num_imagess'; did you mean 'num_images'?"),
        (["--model", "RetinaNett"], "model: no class is named 'RetinaNett'; did you mean RetinaNet?"),
        (["--trainer.callbacks+=MovingAvrage"], "did you mean MovingAverage?"),
        (["--trainer.callbacks+=TorchCompile", "--trainer.callbacks.backendd=x"], "did you mean 'backend'?"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_wrong_values_are_said_with_what_is_allowed(flags: list[str], said: str) -> None:
    assert said in message_of([*MODEL, *DATA, *flags])


@pytest.mark.parametrize(
    ("flag", "content", "said"),
    [
        ("--model", {"class_path": "RetinaNet", "init_args": {"trunkk": "resnet18"}}, "did you mean 'trunk'?"),
        ("--model", {"class_path": "RetinaNet", "init_args": {"frame": {"min_sizes": 3}}}, "mean 'frame.min_size'?"),
        ("--model", ["a", "b"], "model: must name a class, as in class_path: "),
        ("--trainer", {"max_epoch": 3}, "trainer: there is no 'max_epoch'; did you mean 'max_epochs'?"),
        ("--trainer", {"max_epochs": "three"}, "trainer.max_epochs: is 'three'; it must be a whole number"),
        ("--data", {"trainn": {"class_path": "Coco", "init_args": {"annotations": "a"}}}, "did you mean 'train'?"),
        ("--data", {"train": {"class_path": "Coc", "init_args": {"annotations": "a"}}}, "did you mean Coco?"),
        ("--data", {"train": {"class_path": "Coco", "init_args": {"annotation": "a"}}}, "did you mean 'annotations'?"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, flag: str, content: object, said: str) -> None:
    file = tmp_path / "given.yaml"
    write_yaml(file, content)
    message = message_of([*MODEL, flag, str(file)])
    assert said in message
    if isinstance(content, dict):
        assert message.startswith(f"{file}: ")
