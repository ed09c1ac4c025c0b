"""torch.compile for the parts of a detector."""

from collections.abc import Iterator

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn


class TorchCompile(Callback):
    """Compile the trunk, the pyramid and the heads of a detector separately.

    Assignment, decoding and NMS, whose sizes change with every batch, are not compiled. Parameter names, and so
    checkpoints, do not change. The first steps take minutes on a CPU, and recompilation as long where frames have many
    sizes, so it is worthwhile in long trainings with one or few frame sizes.

    Use it by `--trainer.callbacks+=TorchCompile`.

    Args:
        backend: of torch.compile.
        dynamic: as in torch.compile: True compiles for any size, False for each size, None decides by the sizes seen.
    """

    def __init__(self, backend: str = "inductor", dynamic: bool | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.dynamic = dynamic
        self._compiled: set[nn.Module] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the parts for compilation, which happens at their first call."""
        for part in modules_to_compile(pl_module):
            if part not in self._compiled:
                part.compile(backend=self.backend, dynamic=self.dynamic)
                self._compiled.add(part)


def modules_to_compile(module: nn.Module) -> Iterator[nn.Module]:
    """Outermost submodules with parameters and a forward; containers without a forward are descended into."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from modules_to_compile(child)
        elif any(True for _ in child.parameters()):
            yield child
