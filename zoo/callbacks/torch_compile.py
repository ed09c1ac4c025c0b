"""torch.compile as a switch."""

from collections.abc import Iterator

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn


class TorchCompile(Callback):
    """Compiles the trunk, the pyramid and the heads of a detector, each for itself.

    What lies between them (assignment, decoding, NMS) has sizes that change with every batch and stays as it is. Names
    of weights, and so checkpoints, stay the same. The first steps take minutes on a CPU, and as long again where frames
    have many sizes: it pays in long trainings with frames of one size or few.

    Use it by `--trainer.callbacks zoo.callbacks.TorchCompile`.

    Args:
        backend: of torch.compile.
        dynamic: whether the compiled code takes any sizes: False compiles for each anew, None finds out.
    """

    def __init__(self, backend: str = "inductor", dynamic: bool | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.dynamic = dynamic
        self._compiled: set[nn.Module] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compiles what is not compiled yet; the work itself is done at the first call."""
        for part in modules_to_compile(pl_module):
            if part not in self._compiled:
                part.compile(backend=self.backend, dynamic=self.dynamic)
                self._compiled.add(part)


def modules_to_compile(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with weights that are called as such; containers without a forward are looked into."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from modules_to_compile(child)
        elif any(True for _ in child.parameters()):
            yield child
