"""Ridge regression from sums: what has to be kept of the examples does not grow with their number.

    minimise over W:   sum_i |t_i - mean(t) - W [x_i, 1]|^2 + penalty |W|^2

(R-CNN, arXiv 1311.2524, appendix C, equation 5, with targets centred as in the original code, since the constant
feature is penalised, too. Its whitening of the targets is left out: it cancels, every target having the same penalty.)

Legend: G regressions (one a class), N examples, D features, T targets of an example.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass
class RidgeSums:
    """Everything about the examples of G regressions that their solutions depend on."""

    gram: Float[Tensor, "G E E"]  # sum of [x, 1] [x, 1]^T; its last entry counts the examples
    moments: Float[Tensor, "G E T"]  # sum of [x, 1] t^T; its last row is the sum of the targets

    @classmethod
    def zeros(cls, num: int, num_features: int, num_targets: int, device: torch.device) -> "RidgeSums":
        """No examples yet; float64."""
        size = num_features + 1
        gram = torch.zeros(num, size, size, dtype=torch.float64, device=device)
        return cls(gram, gram.new_zeros(num, size, num_targets))

    def add(self, features: Float[Tensor, "N D"], targets: Float[Tensor, "N T"], group: Int64[Tensor, "N"]) -> None:
        """Add examples, each to the regression that `group` names."""
        x = torch.cat((features.double(), features.new_ones(len(features), 1).double()), dim=1)
        for number in group.unique().tolist():
            mine = x[group == number]
            self.gram[number] += mine.T @ mine
            self.moments[number] += mine.T @ targets[group == number].double()


def solve_ridge(sums: RidgeSums, penalty: float) -> tuple[Float[Tensor, "G T D"], Float[Tensor, "G T"]]:
    """Weights and biases of all regressions by Cholesky's method, float64; zeros for one without examples."""
    size = sums.gram.shape[-1]
    total, count = sums.moments[:, -1], sums.gram[:, -1, -1]
    mean = total / count.clamp(min=1)[:, None]
    moments = sums.moments - sums.gram[:, :, -1:] * mean[:, None]
    penalties = penalty * torch.eye(size, dtype=sums.gram.dtype, device=sums.gram.device)
    solution = torch.cholesky_solve(moments, torch.linalg.cholesky(sums.gram + penalties)).mT
    return solution[..., :-1], solution[..., -1] + mean
