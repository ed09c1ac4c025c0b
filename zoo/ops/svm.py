"""Linear support vector machines, one for each class, fitted together on the device that holds the features.

    minimise over w, b:   1/2 |w|^2 + 1/2 (b / beta)^2 + cost * sum_i s_i max(0, 1 - y_i (w . x_i + b))^2

with y = +1 or -1, s the weight of positives (1 for negatives), and beta the scale of the bias. This is liblinear's
problem for a constant feature beta (`-s 2 -B beta`; scikit-learn's `LinearSVC(loss="squared_hinge",
intercept_scaling=beta)`). The squared hinge is smooth, so Newton's method with conjugate gradients solves it (Lin,
Weng and Keerthi, JMLR 2008): about a dozen products of the features with C vectors per step, and no matrix of
size D x D.

Legend: N examples, D features, E = D + 1 with the constant feature, C classes.
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

MAX_NEWTON_STEPS = 50
MAX_CG_STEPS = 50
MAX_HALVINGS = 20
TOLERANCE = 1e-4
"""Norm of the gradient, relative to that at zero weights, at which a class has converged."""


def fit_linear_svms(
    features: Float[Tensor, "N D"],
    signs: Int8[Tensor, "N C"],
    cost: float,
    positive_weight: float,
    bias_scale: float,
) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """Weights and biases of C linear SVMs over the same features, computed in float64.

    Args:
        features: of each example.
        signs: +1 where an example is a positive of a class, -1 where it is a negative, 0 where it is ignored.
        cost: weight of the hinge losses relative to the regularisation.
        positive_weight: weight of a positive's loss relative to a negative's.
        bias_scale: beta; a larger one regularises the bias less.

    Returns:
        Weights and biases in the features' dtype; zeros for a class without examples.
    """
    constant = features.new_full((len(features), 1), bias_scale, dtype=torch.float64)
    x = torch.cat((features.double(), constant), dim=1)
    y = signs.double()
    error_weights = 2 * cost * torch.where(signs > 0, positive_weight, (signs < 0).double())
    v = x.new_zeros(signs.shape[1], x.shape[1])
    z = x @ v.T  # [N, C], kept up to date with v
    first_norm: Tensor | None = None
    for _ in range(MAX_NEWTON_STEPS):
        slack = (1 - y * z).clamp(min=0)
        gradient = v - (error_weights * y * slack).T @ x
        norm = gradient.norm(dim=1)
        first_norm = norm if first_norm is None else first_norm
        active = norm > TOLERANCE * first_norm
        if not active.any():
            break
        direction = _newton_direction(x, error_weights * (slack > 0), gradient) * active[:, None]
        dz = x @ direction.T
        step = _step_sizes(v, z, y, error_weights, gradient, direction, dz)
        v = v + step[:, None] * direction
        z = z + step * dz
    return v[:, :-1].to(features.dtype), (v[:, -1] * bias_scale).to(features.dtype)


def _newton_direction(
    x: Float[Tensor, "N E"], curvature: Float[Tensor, "N C"], gradient: Float[Tensor, "C E"]
) -> Float[Tensor, "C E"]:
    """-H^-1 gradient by conjugate gradients, H = I + x^T diag(curvature) x, for all classes in parallel."""
    direction = torch.zeros_like(gradient)
    residual = -gradient
    search = residual
    squared = residual.square().sum(dim=1)
    tolerance = 1e-4 * squared  # a hundredth of the gradient's norm
    for _ in range(MAX_CG_STEPS):
        if not (squared > tolerance).any():
            break
        product = search + (curvature * (x @ search.T)).T @ x
        alpha = squared / (search * product).sum(dim=1).clamp(min=1e-300)
        direction = direction + alpha[:, None] * search
        residual = residual - alpha[:, None] * product
        previous, squared = squared, residual.square().sum(dim=1)
        search = residual + (squared / previous.clamp(min=1e-300))[:, None] * search
    return direction


def _step_sizes(
    v: Tensor, z: Tensor, y: Tensor, error_weights: Tensor, gradient: Tensor, direction: Tensor, dz: Tensor
) -> Float[Tensor, " C"]:
    """Step size of each class by backtracking: the first of 1, 1/2, 1/4, ... with an Armijo decrease of 1e-4."""

    def objective(step: Tensor) -> Tensor:
        slack = (1 - y * (z + step * dz)).clamp(min=0)
        weights = v + step[:, None] * direction
        return 0.5 * weights.square().sum(dim=1) + 0.5 * (error_weights * slack.square()).sum(dim=0)

    step = z.new_ones(z.shape[1])
    slope = (gradient * direction).sum(dim=1)
    start = objective(torch.zeros_like(step))
    for _ in range(MAX_HALVINGS):
        too_far = objective(step) > start + 1e-4 * step * slope
        if not too_far.any():
            break
        step = torch.where(too_far, step / 2, step)
    return step
