"""Corner pooling compared with loops over cells, forward and backward, including ties."""

import pytest
import torch
from torch import Tensor

from zoo.ops.corner_pooling import _running_max_by_doubling, corner_pool, running_max


def slow_running_max(maps: Tensor, grad: Tensor, dim: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Result and gradient, cell by cell; of equal values the first one scanned receives the gradient."""
    result, gradient = torch.empty_like(maps), torch.zeros_like(maps)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, maps.shape)).tolist():
        place, size = (i, maps.shape[2]) if dim == 2 else (j, maps.shape[3])
        scan = range(size - 1, place - 1, -1) if reverse else range(place + 1)
        cells = [(b, c, k, j) if dim == 2 else (b, c, i, k) for k in scan]
        winner = max(cells, key=lambda cell: maps[cell].item())  # Python's max is the first of equals
        result[b, c, i, j] = maps[winner]
        gradient[winner] += grad[b, c, i, j]
    return result, gradient


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_running_max_and_its_gradient_equal_a_slow_loop(
    dim: int, reverse: bool, levels: int, memory_format: torch.memory_format
) -> None:
    """With few levels most values tie, with many levels few do."""
    torch.manual_seed(0)
    maps = torch.randint(-levels, levels, (2, 3, 6, 5)).double().to(memory_format=memory_format).requires_grad_()
    grad = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    result = running_max(maps, dim, reverse)
    result.backward(grad)
    expected, expected_gradient = slow_running_max(maps.detach(), grad, dim, reverse)
    assert torch.equal(result, expected)
    torch.testing.assert_close(maps.grad, expected_gradient)
    assert torch.equal(_running_max_by_doubling(maps, dim, reverse), expected)


def test_figure_6_of_the_paper() -> None:
    """Rows scanned from right to left: 2 1 3 0 2 -> 3 3 3 2 2; and two maps are added."""
    row = torch.tensor([2.0, 1, 3, 0, 2])
    across, down = row.view(1, 1, 1, 5), row.view(1, 1, 5, 1)
    assert running_max(across, 3, True).flatten().tolist() == [3, 3, 3, 2, 2]
    assert running_max(down, 2, True).flatten().tolist() == [3, 3, 3, 2, 2]
    assert running_max(across, 3, False).flatten().tolist() == [2, 2, 3, 3, 3]
    pair = torch.tensor([[[[0.0, 4], [1, 2]]]]), torch.tensor([[[[5.0, 7], [6, 3]]]])
    assert corner_pool(*pair, "top_left").flatten().tolist() == [1 + 7, 4 + 7, 1 + 6, 2 + 3]
    assert corner_pool(*pair, "bottom_right").flatten().tolist() == [0 + 5, 4 + 7, 1 + 6, 4 + 6]


def test_gradients_of_a_long_run_are_summed_in_float32() -> None:
    """One cell accumulates 512 gradients of 1: a sum in bf16 would stop at 256."""
    maps = torch.zeros(1, 1, 512, 1, dtype=torch.bfloat16)
    maps[0, 0, -1] = 1
    maps.requires_grad_()
    running_max(maps, 2, True).sum().backward()
    assert maps.grad[0, 0, -1].item() == 512
    assert maps.grad[0, 0, :-1].abs().sum() == 0


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 1, 1, 7), (2, 1, 7, 1)])
def test_maps_of_one_row_or_column(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape, requires_grad=True)
    corner_pool(maps, maps, "top_left").sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_exported_graph_accepts_other_sizes() -> None:
    class Pool(torch.nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return corner_pool(maps, maps, "bottom_right")

    sides = {2: torch.export.Dim("height", min=2, max=512), 3: torch.export.Dim("width", min=2, max=512)}
    program = torch.export.export(Pool(), (torch.randn(1, 2, 6, 9),), dynamic_shapes=(sides,)).module()
    for height, width in ((6, 9), (33, 5), (70, 130)):
        maps = torch.randn(1, 2, height, width)
        assert torch.equal(program(maps), Pool()(maps))
