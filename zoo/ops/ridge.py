"""Ridge regression from accumulated sums, whose size does not depend on the number of examples.

    minimise over W:   sum_i |t_i - mean(t) - W [x_i, 1]|^2 + penalty |W|^2

(R-CNN, arXiv 1311.2524, appendix C, equation 5, with targets centred as in the original code, since the constant
feature is penalised as well. Its whitening of the targets is left out: it cancels, as all targets have the same
penalty.)

Legend: G regressions (one for each class), N examples, D features, E = D + 1, T targets of an example.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass
class RidgeSums:
    """Sufficient statistics of the examples of G regressions."""

    gram: Float[Tensor, "G E E"]  # sum of [x, 1] [x, 1]^T; the last entry is the number of examples
    moments: Float[Tensor, "G E T"]  # sum of [x, 1] t^T; the last row is the sum of the targets

    @classmethod
    def zeros(cls, num: int, num_features: int, num_targets: int, device: torch.device) -> "RidgeSums":
        """Float64 sums of no examples."""
        size = num_features + 1
        gram = torch.zeros(num, size, size, dtype=torch.float64, device=device)
        return cls(gram, gram.new_zeros(num, size, num_targets))

    def add(self, features: Float[Tensor, "N D"], targets: Float[Tensor, "N T"], group: Int64[Tensor, " N"]) -> None:
        """Add examples, each to the regression with the index in `group`."""
        x = torch.cat((features.double(), features.new_ones(len(features), 1).double()), dim=1)
        for index in group.unique().tolist():
            members = x[group == index]
            self.gram[index] += members.T @ members
            self.moments[index] += members.T @ targets[group == index].double()


def solve_ridge(sums: RidgeSums, penalty: float) -> tuple[Float[Tensor, "G T D"], Float[Tensor, "G T"]]:
    """Float64 weights and biases of all regressions by Cholesky decomposition; zeros for one without examples."""
    size = sums.gram.shape[-1]
    total, count = sums.moments[:, -1], sums.gram[:, -1, -1]
    mean = total / count.clamp(min=1)[:, None]
    moments = sums.moments - sums.gram[:, :, -1:] * mean[:, None]
    penalties = penalty * torch.eye(size, dtype=sums.gram.dtype, device=sums.gram.device)
    solution = torch.cholesky_solve(moments, torch.linalg.cholesky(sums.gram + penalties)).mT
    return solution[..., :-1], solution[..., -1] + mean
