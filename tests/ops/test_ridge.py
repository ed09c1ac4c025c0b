"""Ridge regression compared with the normal equations and a hand-computed solution."""

import torch

from zoo.ops.ridge import RidgeSums, solve_ridge


def test_solution_satisfies_the_normal_equations() -> None:
    """Slow loop over regressions and examples: (sum x x^T + penalty I) w = sum x (t - mean)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    targets = torch.randn(40, 4, dtype=torch.float64, generator=generator) + 2
    group = torch.arange(40) % 2
    sums = RidgeSums.zeros(2, 5, 4, torch.device("cpu"))
    for part in (slice(0, 15), slice(15, 40)):
        sums.add(features[part], targets[part], group[part])
    weights, biases = solve_ridge(sums, 3.0)
    for number in range(2):
        rows = [index for index in range(40) if index % 2 == number]
        mean = sum(targets[row] for row in rows) / len(rows)
        left, right = 3.0 * torch.eye(6, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.float64)
        for row in rows:
            x = torch.cat((features[row], torch.ones(1, dtype=torch.float64)))
            left += torch.outer(x, x)
            right += torch.outer(x, targets[row] - mean)
        expected = torch.linalg.solve(left, right)
        torch.testing.assert_close(weights[number], expected[:5].T)
        torch.testing.assert_close(biases[number], expected[5] + mean)


def test_one_feature_by_hand() -> None:
    """Examples x = -1, 1 and t = 1, 5: mean 3, slope (2 + 2) / (2 + penalty 2) = 1."""
    sums = RidgeSums.zeros(1, 1, 1, torch.device("cpu"))
    sums.add(torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]]), torch.tensor([0, 0]))
    weights, biases = solve_ridge(sums, 2.0)
    torch.testing.assert_close(weights, torch.tensor([[[1.0]]], dtype=torch.float64))
    torch.testing.assert_close(biases, torch.tensor([[3.0]], dtype=torch.float64))


def test_without_examples_weights_and_biases_are_zero() -> None:
    sums = RidgeSums.zeros(2, 3, 4, torch.device("cpu"))
    sums.add(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    weights, biases = solve_ridge(sums, 1000.0)
    assert (weights == 0).all()
    assert (biases == 0).all()
