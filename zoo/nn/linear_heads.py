"""R-CNN's linear heads, fitted to the features of a trained trunk: an SVM and a box regressor for each class.

R-CNN (arXiv 1311.2524), sections 2.3 and 3.5, appendices B and C. `LinearHeads` holds the weights, `HeadFitter` fits
them in one pass over the windows, batch by batch: it keeps the positives and the hard negatives (those that the SVMs
misclassify) in an example bank, and only accumulated sums for the box regressors.

As in the original code (rbgirshick/rcnn, rcnn_train.m and rcnn_train_bbox_regressor.m): features scaled to a mean
length of 20, cost 0.001, positives weighted by 2, bias scaled by 10; SVMs refitted after the first images, after every
2,000 further negatives and at the end; negatives above -1 added, below -1.2 removed; one pass.
Deviations: squared hinge loss (`zoo.ops.svm`) instead of hinge loss; all classes share one bank of bounded size; the
mean feature length is that of the first images.

In distributed training each process adds its own images, and all have the same bank, since every round is gathered.

Legend: n windows, D features, C classes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor, distributed, nn

from zoo.ops.distributed import all_gather_rows, all_reduce_sum, is_distributed
from zoo.ops.precision import upcast
from zoo.ops.ridge import RidgeSums, solve_ridge
from zoo.ops.svm import fit_linear_svms

MEAN_LENGTH = 20.0
POSITIVE_WEIGHT = 2.0
BIAS_SCALE = 10.0
REFIT_AFTER = 2000  # negatives
HARD, EASY = -1.0, -1.2  # decision values: negatives above HARD are added to the bank, below EASY removed


class LinearHeads(nn.Module):
    """SVM decision value and box deltas of each class, both linear in the features; the weights are buffers.

    `fitted` is True if they were fitted to the current trunk; training the trunk further resets it.
    """

    svm_weight: Tensor
    svm_bias: Tensor
    box_weight: Tensor
    box_bias: Tensor
    fitted: Tensor

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("svm_weight", torch.zeros(num_classes, num_features))
        self.register_buffer("svm_bias", torch.zeros(num_classes))
        self.register_buffer("box_weight", torch.zeros(num_classes, 4, num_features))
        self.register_buffer("box_bias", torch.zeros(num_classes, 4))
        self.register_buffer("fitted", torch.tensor(False))

    def decide(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        """SVM decision values: 0 is the decision boundary, +1 and -1 the margins."""
        # Not under autocast, which would round the product to bf16 and change the order of close scores.
        with torch.autocast(features.device.type, enabled=False):
            features = upcast(features)
            return features @ self.svm_weight.to(features.dtype).T + self.svm_bias.to(features.dtype)

    def regress(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n C 4"]:
        """Deltas t_x, t_y, t_w, t_h (`zoo.ops.coding`, unit weights) for each class."""
        with torch.autocast(features.device.type, enabled=False):
            features = upcast(features)
            deltas = features @ self.box_weight.to(features.dtype).flatten(0, 1).T
            return deltas.unflatten(1, (-1, 4)) + self.box_bias.to(features.dtype)

    def invalidate(self) -> None:
        """Mark the heads as not fitted, because the features change."""
        self.fitted.fill_(False)


class Examples(NamedTuple):
    """Examples of SVMs and box regressors: n windows with their features and targets."""

    features: Float[Tensor, "n D"]
    signs: Int8[Tensor, "n C"]  # +1 for a ground truth box of a class, -1 for a negative of it, 0 for neither
    deltas: Float[Tensor, "n 4"]  # regression targets, used where `regressed`
    labels: Int64[Tensor, " n"]  # class whose box regressor has the window as an example, used where `regressed`
    regressed: Bool[Tensor, " n"]  # windows that overlap an object enough to be regression examples


class HeadFitter:
    """Fit `LinearHeads` to windows that are added in rounds, the same number of rounds on every process.

    Args:
        num_classes: C.
        num_features: D.
        device: of the features.
        cost: of SVM errors (C).
        penalty: on the box regressors' weights (lambda).
        bank_size: maximum number of examples kept; beyond it the easiest negatives are dropped.
    """

    def __init__(
        self, num_classes: int, num_features: int, device: torch.device, cost: float, penalty: float, bank_size: int
    ) -> None:
        self.cost, self.penalty, self.bank_size = cost, penalty, bank_size
        self.features = torch.zeros(0, num_features, device=device)
        self.signs = torch.zeros(0, num_classes, dtype=torch.int8, device=device)
        self.weight = torch.zeros(num_classes, num_features, device=device)
        self.bias = torch.zeros(num_classes, device=device)
        self.ridge = RidgeSums.zeros(num_classes, num_features, 4, device)
        self.scale: Tensor | None = None
        self.num_new = 0
        self.num_dropped = 0  # hard negatives for which the bank had no room
        self.has_svms = False

    def add_round(
        self,
        features: Float[Tensor, "n D"],
        signs: Int8[Tensor, "n C"],
        deltas: Float[Tensor, "n 4"],
        labels: Int64[Tensor, " n"],
        regressed: Bool[Tensor, " n"],
    ) -> None:
        """Add this process's `Examples` of a round; n may be 0 and may differ between processes."""
        features = upcast(features)
        if self.scale is None:
            lengths = torch.stack((features.norm(dim=1).sum(), features.new_tensor(float(len(features)))))
            total, count = all_reduce_sum(lengths)
            self.scale = MEAN_LENGTH * count / total.clamp(min=1e-12)
        features = features * self.scale
        self.ridge.add(features[regressed], deltas[regressed], labels[regressed])

        if self.has_svms:
            is_hard = self._values(features) > HARD
            signs = torch.where((signs > 0) | is_hard, signs, 0)
        used = (signs != 0).any(dim=1)
        new_features, new_signs = all_gather_rows(features[used]), all_gather_rows(signs[used])
        self.features = torch.cat((self.features.to(features.dtype), new_features))
        self.signs = torch.cat((self.signs, new_signs))
        self.num_new += len(new_signs)
        if self.num_new > REFIT_AFTER or not self.has_svms:
            self.refit()

    def no_examples(self) -> Examples:
        """Empty `Examples`, for the round of a process that has no images left."""
        num_classes, num_features = self.weight.shape
        none = self.weight.new_zeros(0, dtype=torch.int64)
        signs = self.signs.new_zeros(0, num_classes)
        return Examples(self.weight.new_zeros(0, num_features), signs, self.weight.new_zeros(0, 4), none, none.bool())

    def refit(self) -> None:
        """Fit the SVMs to the bank, and remove easy negatives from it."""
        self.weight, self.bias = fit_linear_svms(self.features, self.signs, self.cost, POSITIVE_WEIGHT, BIAS_SCALE)
        self.has_svms, self.num_new = True, 0
        values = self._values(self.features)
        self.signs = torch.where((self.signs > 0) | (values >= EASY), self.signs, 0)
        # Positives rank before all negatives, and hard negatives before easy ones.
        rank = values.masked_fill(self.signs >= 0, -torch.inf).amax(dim=1)
        rank = rank.masked_fill((self.signs > 0).any(dim=1), torch.inf)
        useful = rank.argsort(descending=True, stable=True)[: int((rank > -torch.inf).sum())]
        kept = useful[: self.bank_size].sort().values
        self.num_dropped += len(useful) - len(kept)
        self.features, self.signs = self.features[kept], self.signs[kept]

    def _values(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        """Decision values, without autocast as in `LinearHeads.decide`."""
        with torch.autocast(features.device.type, enabled=False):
            return features @ self.weight.T + self.bias

    def finish(self, heads: LinearHeads) -> None:
        """Fit a last time and write the weights into the heads, the same on every process."""
        if self.num_new:
            self.refit()
        all_reduce_sum(self.ridge.gram)
        all_reduce_sum(self.ridge.moments)
        box_weight, box_bias = solve_ridge(self.ridge, self.penalty)
        scale = self.scale if self.scale is not None else torch.ones((), device=self.bias.device)
        fitted = {
            "svm_weight": self.weight * scale,
            "svm_bias": self.bias,
            "box_weight": box_weight * scale,
            "box_bias": box_bias,
        }
        for name, values in fitted.items():
            buffer = heads.get_buffer(name)
            buffer.copy_(values)
            if is_distributed():
                distributed.broadcast(buffer, src=0)
        heads.fitted.fill_(True)
