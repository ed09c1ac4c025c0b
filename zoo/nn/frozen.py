"""Batch norm with fixed statistics, and networks whose first stages are not trained."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError


class _NormaliseFrozen(torch.autograd.Function):
    """Batch norm with fixed statistics, whose gradient is computed by the same operation.

    torch's own gradient is slower: on GPUs it is not in the order of channels_last, and is then copied into it.
    """

    @staticmethod
    def forward(features: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.batch_norm(features, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, variance, weight, _, ctx.eps = inputs
        ctx.save_for_backward(variance, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        variance, weight = ctx.saved_tensors
        zero = torch.zeros_like(weight)
        return F.batch_norm(gradient, zero, variance, weight, zero, eps=ctx.eps), None, None, None, None, None


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and affine parameters.

    One operation in either direction, where torchvision's and timm's are several that also upcast bf16 activations to
    float32.
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
        """Normalised features, after the activation of the replaced layer if it had one."""
        parameters = (self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        return self.act(_NormaliseFrozen.apply(features, *parameters))


def freeze_norms(module: nn.Module) -> nn.Module:
    """The module with its batch norms replaced by fixed ones."""
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_norms(child))
    return module


def freeze_stages(network: nn.Module, name: str, count: int) -> None:
    """Freeze weights and batch norm statistics of the first `count` stages of a timm model with feature maps.

    A stage ends with the module of a feature map; the first one includes the stem. Without a trainable weight before
    them, these layers run without gradients, and their activations are not kept.

    Args:
        network: with `feature_info`.
        name: of the model, for messages.
        count: number of stages.

    Raises:
        InputError: the model has fewer stages.
    """
    ends: list[str] = [info["module"] for info in network.feature_info.info]  # type: ignore[union-attr]
    if not count:
        return
    if count > len(ends) or not _freeze_until(network, "", ends[count - 1]):
        raise InputError(f"the first {count} stages of trunk {name!r} cannot be frozen; it has {len(ends)}")


def _freeze_until(module: nn.Module, prefix: str, end: str) -> bool:
    """Freeze all layers up to the one of this name, in the order in which they run; whether it was found."""
    for child_name, child in list(module.named_children()):
        path = prefix + child_name
        if end.startswith(f"{path}."):
            return _freeze_until(child, f"{path}.", end)
        child.requires_grad_(False)
        setattr(module, child_name, freeze_norms(child))
        if path in (end, end.replace(".", "_")):  # timm flattens some nested names: features.4 is features_4
            return True
    return False
