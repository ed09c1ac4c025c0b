"""`zoo anchors`."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cli.data import DATA_HELP, find_sources
from zoo.cli.exit_codes import OK
from zoo.cli.parsers import make_parser
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.configurations import describe_choice, find_model_file, read_yaml
from zoo.models import YOLOv3
from zoo.nn.frame import FrameConfig
from zoo.ops.anchors import fit_anchors, shape_iou
from zoo.training.trainer import silence_lightning


def anchors(args: list[str]) -> int:
    """`zoo anchors`: print anchors that fit the objects of a data set."""
    parser = make_parser("anchors", epilog="Paste the last line behind `zoo fit --model ...`, or into a model file.")
    parser.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    text = "a YOLOv3, whose frame the anchors are for (default: the one that `zoo fit --model yolov3` takes)"
    parser.add_argument("--model", default="yolov3", metavar="NAME|FILE", help=text)
    parser.add_argument("--count", type=int, help="number of anchors (default: as many as the model has)")
    parser.add_argument("--split", help="whose objects are used (default: train, or all where there are no splits)")
    parser.add_argument("--seed", type=int, default=0, help="of k-means (default: 0)")
    options = parser.parse_args(args)
    silence_lightning()
    file = find_model_file(options.model, options.data)
    chosen = describe_choice(options.model, file)
    if chosen is not None:
        print(chosen)
    settings = read_settings(file)
    sides = framed_sides(read_split(options.data, options.split), settings["frame"])
    own = torch.tensor(settings["anchors"], dtype=torch.float64)
    count = len(own) if options.count is None else options.count
    num_shapes = len(sides.unique(dim=0))
    if not 1 <= count <= num_shapes:
        raise InputError(f"cannot fit {count} anchors to {num_shapes} different box sizes; give another --count")
    fitted = fit_anchors(sides, count, options.seed).round(decimals=1)
    print_anchors(sides, fitted, own)
    return OK


def read_settings(file: Path) -> dict[str, Any]:
    """Constructor arguments of a YOLOv3 of a model file, with the defaults of those that it leaves out.

    Raises:
        InputError: the file cannot be read, or is of another detector.
    """
    content = read_yaml(file)
    name = str(content.get("class_path")).rpartition(".")[2] if isinstance(content, dict) else None
    if name != YOLOv3.__name__:
        raise InputError(f"is no YOLOv3 but {name}; only YOLOv3 has anchors by width and height", file)
    defaults = {name: value.default for name, value in inspect.signature(YOLOv3).parameters.items()}
    settings = defaults | content.get("init_args", {})
    if isinstance(settings["frame"], dict):
        settings["frame"] = FrameConfig(**settings["frame"])
    return settings


def read_split(data: Path, split: str | None) -> AnnotationTable:
    """Annotations of a split; None for the training split or the only one.

    Raises:
        InputError: there is no such split, or it cannot be read.
    """
    sources = find_sources(data)
    name = split or ("train" if "train" in sources else next(iter(sources)))
    if name not in sources or (split is None and name != "train" and len(sources) > 1):
        raise InputError(f"has no split {split or 'train'}; give --split {' or '.join(sources)}", data)
    return sources[name].read()


def framed_sides(table: AnnotationTable, frame: FrameConfig) -> Float[Tensor, "M 2"]:
    """Widths and heights in framed pixels of the objects to train on."""
    given = zip(table.heights.tolist(), table.widths.tolist(), strict=True)
    framed = np.array([frame.framed_size(*size, for_training=True)[::-1] for size in given], dtype=np.float64)
    scales = framed.reshape(-1, 2) / np.stack([table.widths, table.heights], axis=1)
    sides = (table.boxes[:, 2:] - table.boxes[:, :2]) * scales.repeat(np.diff(table.offsets), axis=0)
    return torch.from_numpy(sides[~(table.iscrowd | table.difficult)])


def print_anchors(sides: Float[Tensor, "M 2"], fitted: Float[Tensor, "A 2"], own: Float[Tensor, "_ 2"]) -> None:
    """Print anchors, how many objects each overlaps most, and the mean IoU of the objects with them."""
    nearest = torch.bincount(shape_iou(sides, fitted).argmax(dim=1), minlength=len(fitted))
    print(f"{len(sides):,} objects, mean IoU with their best anchor:")
    for text, shapes in ((f"{len(fitted)} anchors by k-means", fitted), (f"the model's {len(own)} anchors", own)):
        print(f"  {text}: {float(shape_iou(sides, shapes).amax(dim=1).mean()):.3f}")
    print("   width  height   objects")
    for (width, height), number in zip(fitted.tolist(), nearest.tolist(), strict=True):
        print(f"{width:8.1f}{height:8.1f}{number:10,}")
    print(f"--model.anchors {json.dumps(fitted.tolist(), separators=(',', ':'))}")
