"""Number of parameters of the papers' networks, which are the detectors' defaults."""

import torch
from torch import nn

from zoo.models.cornernet import CornerNet
from zoo.models.sliding_window import SlidingWindow


def count_parameters(detector: nn.Module) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())


def test_cornernet_has_the_parameters_of_the_published_weights() -> None:
    """Hourglass-104 with heads for COCO's classes."""
    with torch.device("meta"):
        assert count_parameters(CornerNet(80)) == 201_035_212


def test_overfeat_has_the_parameters_of_table_3() -> None:
    """The accurate model with 1000 classes and the detector's background class (section 5), without the regressor."""
    assert count_parameters(SlidingWindow(1000, regress_boxes=False)) == 144_660_585
