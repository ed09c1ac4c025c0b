"""Batch norm over all processes, for every trunk."""

from pytorch_lightning.plugins import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TimmSyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's switch `sync_batchnorm`, for timm's layers too, which hold the activation behind their norm.

    Torch's own conversion, which Lightning calls, leaves those activations out: the network that is trained is then
    another one than the network that is loaded from its checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: list[tuple[nn.Module, str, _BatchNorm]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Put layers that share their statistics in the place of all batch norms, with the same weights."""
        self._places = [
            (parent, name, layer)
            for parent in model.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, _BatchNorm)
        ]
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the former layers back, with what the others have learned."""
        for parent, name, layer in self._places:
            synced = parent.get_submodule(name)
            for key, value in (*synced.named_parameters(recurse=False), *synced.named_buffers(recurse=False)):
                setattr(layer, key, value)
            layer.train(synced.training)
            setattr(parent, name, layer)
        self._places = []
        return model
