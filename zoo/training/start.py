"""Weights that a training starts from: `--model.weights` and `--model.weights_layout`, or these keys of a model file.

They are not arguments of a detector, which would then be built from a file that a finished training does not need. In
configurations they are `weights` and `weights_layout` beside `model`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from zoo.errors import InputError
from zoo.io.configurations import file_values, read_yaml

if TYPE_CHECKING:
    from zoo.detector import Detector

KEYS = ("weights", "weights_layout")


def add_start_arguments(parser: LightningArgumentParser) -> None:
    """Add `--weights` and `--weights_layout`, as which `take_start` passes the flags of a model."""
    from zoo.weights import Layout  # imports all detectors, which commands without a model do not need

    text = "weights of a detector to start from (--model.weights)"
    parser.add_argument("--weights", type=str | None, default=None, help=text)
    parser.add_argument("--weights_layout", type=Layout | None, default=None, help="of that file (recognised)")


def take_start(args: Sequence[str]) -> list[str]:
    """The command line with the weights of a model under the parser's own flags.

    Raises:
        InputError: a model file is not valid YAML.
    """
    taken: list[str] = []
    from_files: list[str] = []
    values = {position: (flag, value) for position, flag, value in file_values(args)}
    skip = False
    for position, argument in enumerate(args):
        if skip:
            skip = False
            continue
        flag, value = values.get(position, ("", ""))
        content = read_yaml(value) if flag == "--model" and Path(value).suffix in (".yaml", ".yml") else None
        if isinstance(content, dict) and set(KEYS) & content.keys():
            given = {key: content.pop(key) for key in KEYS if key in content}
            from_files += [f"--{key}={text}" for key, text in given.items() if text is not None]
            taken.append(f"--model={json.dumps(content)}")
            skip = "=" not in argument
        else:
            taken.append(re.sub(r"^--model\.(weights|weights_layout)(?==|$)", r"--\1", argument))
    verb = taken[:1] if taken and not taken[0].startswith("-") else []
    return [*verb, *from_files, *taken[len(verb) :]]


def replace_pretrained(config: Namespace) -> None:
    """Leave out the trunk's pretrained weights where those of a whole detector are given."""
    model = config.get("model")
    if config.get("weights") is not None and model is not None and model.init_args.get("pretrained"):
        model.init_args.pretrained = False


def start_detector(detector: "Detector", config: Namespace) -> str | None:
    """Load the weights that a configuration names.

    Args:
        detector: changed in place.
        config: with `weights` and `weights_layout`.

    Returns:
        What was loaded, in one line; None for a configuration without weights.

    Raises:
        InputError: the file cannot be used for this detector.
    """
    if config.weights is None:
        if config.weights_layout is not None:
            raise InputError("--model.weights_layout needs --model.weights FILE")
        return None
    from zoo.weights import start_from

    return str(start_from(detector, config.weights, config.weights_layout, _follows_pixels(config)))


def resume_pixels(detector: "Detector", config: Namespace, checkpoint: str | Path) -> None:
    """Take the mean and std that the start's weights brought from the checkpoint of a run that is resumed.

    A checkpoint's tensors are loaded by Lightning, but not these.
    """
    from zoo.detector.checkpoint import read_checkpoint

    if config.weights is None or not _follows_pixels(config):
        return
    frame = read_checkpoint(checkpoint)["detector"]["arguments"]["frame"]
    if frame["mean"] is not None and frame["std"] is not None:
        detector.set_pixels(tuple(frame["mean"]), tuple(frame["std"]))


def _follows_pixels(config: Namespace) -> bool:
    frame = config.model.init_args.get("frame")
    return frame is None or (frame.mean is None and frame.std is None)
