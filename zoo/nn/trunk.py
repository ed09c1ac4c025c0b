"""Any timm model as a trunk: named feature levels, frozen stages, norm policy."""

from pathlib import Path
from typing import Literal, cast

import timm
import torch
from jaxtyping import Float
from timm.models import FeatureListNet
from torch import Tensor, nn

from zoo.errors import InputError

Norm = Literal["batch", "frozen"]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and fixed affine parameters: x * scale + shift.

    torchvision's and timm's multiply in float32 and so widen bf16 activations; this keeps the input's dtype.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        # timm's BatchNormAct2d applies its activation itself.
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Scale, shift, and the activation of the layer that this one replaced."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        dtype = features.dtype
        return self.act(features * scale.to(dtype).view(1, -1, 1, 1) + shift.to(dtype).view(1, -1, 1, 1))


class Trunk(nn.Module):
    """Feature maps of a timm model at the given strides.

    Args:
        name: any timm model that can give feature maps ("resnet50", "vgg16", "convnext_tiny", ...).
        strides: of the levels wanted, for example (8, 16, 32).
        pretrained: timm's ImageNet weights, or a local file of them, or none.
        norm: "batch" trains batch normalisation; "frozen" fixes it, for small batches over pretrained weights.
        frozen_stages: how many of the trunk's stages, counted from the image, are not trained.

    Raises:
        InputError: timm does not know the name, it has no such strides, or the weights cannot be had.
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
            raise InputError(f"trunk {name!r} has no features at stride {missing[0]}; it has {all_strides}")
        # VGG has two maps of the same stride at its end; the deeper one is meant.
        indices = tuple(len(all_strides) - 1 - all_strides[::-1].index(stride) for stride in strides)
        self.network = _create(name, indices, pretrained)
        self.strides = strides
        self.channels: list[int] = self.network.feature_info.channels()
        if norm == "frozen":
            _freeze_norms(self.network)
        _freeze_stages(self.network, frozen_stages)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """One map [B, C_l, H / stride_l, W / stride_l] a level, fine to coarse."""
        return self.network(images)


def _feature_strides(name: str) -> list[int]:
    if name.split(".")[0] not in timm.list_models(include_tags=False):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:4])
        raise InputError(
            f"timm {timm.__version__} does not know a trunk {name!r}" + (f"; near it: {near}" if near else "")
        )
    with torch.device("meta"):
        try:
            return list(cast(FeatureListNet, timm.create_model(name, features_only=True)).feature_info.reduction())
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise InputError(f"trunk {name!r} gives no feature maps: {error}") from error


def _create(name: str, indices: tuple[int, ...], pretrained: bool | str) -> FeatureListNet:
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise InputError("no such file of trunk weights", pretrained)
    overlay = {"file": pretrained} if isinstance(pretrained, str) else None
    try:
        network = timm.create_model(
            name,
            features_only=True,
            out_indices=indices,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=overlay,
        )
    except Exception as error:
        if isinstance(pretrained, str):
            raise InputError(f"does not hold weights of trunk {name!r}: {_first_line(error)}", pretrained) from error
        if pretrained:
            raise InputError(
                f"pretrained weights of trunk {name!r} could not be fetched ({_first_line(error)}); download them "
                "where there is a network and name the file: --model.pretrained /path/to/weights.safetensors"
            ) from error
        raise
    return cast(FeatureListNet, network)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _freeze_norms(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, _freeze_norms(child))
    return module


def _freeze_stages(network: FeatureListNet, count: int) -> None:
    """Fix weights and statistics of the first stages; the stem is stage 1."""
    ends = {info["module"] for info in network.feature_info.info}
    stage = 1
    for name, child in network.named_children():
        if stage > count:
            return
        child.requires_grad_(False)
        setattr(network, name, _freeze_norms(child))
        if name in ends:
            stage += 1
