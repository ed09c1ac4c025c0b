"""Synchronised batch norm that also converts timm's layers."""

from pytorch_lightning.plugins import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TimmSyncBatchNorm(TorchSyncBatchNorm):
    """Conversion for Lightning's `sync_batchnorm` that keeps the activations inside timm's norm layers.

    Torch's conversion, which Lightning calls, drops those activations, so the trained network would differ from the
    one that is loaded from its checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._replaced: list[tuple[nn.Module, str, _BatchNorm]] = []  # (parent, attribute, original layer)

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace all batch norms by synchronised ones with the same parameters."""
        self._replaced = [
            (parent, name, layer)
            for parent in model.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, _BatchNorm)
        ]
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the original layers, with the trained parameters and statistics."""
        for parent, name, layer in self._replaced:
            synced = parent.get_submodule(name)
            for key, value in (*synced.named_parameters(recurse=False), *synced.named_buffers(recurse=False)):
                setattr(layer, key, value)
            layer.train(synced.training)
            setattr(parent, name, layer)
        self._replaced = []
        return model
