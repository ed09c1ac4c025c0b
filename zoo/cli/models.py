"""`zoo models`."""

from itertools import groupby

from zoo.cli.exit_codes import OK
from zoo.cli.parsers import make_parser
from zoo.io.configurations import paper_of, summarise_models

_NOTE = """\
A detector's name stands for its _tiny configuration on the built-in shapes and for its _mobilenetv2 on other data:
  zoo compare --models retinanet faster_rcnn --data DATA      zoo fit --model retinanet_r50_fpn --data DATA
Weights are in millions for 20 classes, frames are the shorter side of the images in pixels."""


def models(args: list[str]) -> int:
    """`zoo models`: list detectors and their configurations."""
    make_parser("models").parse_args(args)
    for detector, group in groupby(summarise_models(), key=lambda summary: summary.detector):
        print(f"{detector}\n  {paper_of(detector)}")
        for summary in group:
            weights = f"{summary.weights:g} M"
            start = f"from {summary.starts_from}"
            print(f"    {summary.name:26} {weights:>8}  {summary.trunk:11} {summary.frame:4} px  {start}")
        print()
    print(_NOTE)
    return OK
