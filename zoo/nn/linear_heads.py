"""Heads that are fitted to finished features instead of trained with them: an SVM and a box regressor for each class.

R-CNN (arXiv 1311.2524), sections 2.3 and 3.5, appendices B and C. `LinearHeads` holds the result, `HeadFitter` finds it
from windows that come batch by batch and are seen once: it keeps the positives and those negatives that the machines
still get wrong, and of the regressors' examples nothing but sums.

Of the original code (rbgirshick/rcnn, rcnn_train.m and rcnn_train_bbox_regressor.m) are: features scaled to a mean
length of 20, cost 0.001, positives weighed twice, a bias scaled by 10; machines fitted anew after the first images,
after every 2,000 further negatives and at the end; negatives above -1 taken in, below -1.2 let go; one pass.
Deviations: the squared hinge (`zoo.ops.svm`) for the plain one; all classes share one bank of examples, of bounded
size; the features' mean length is that of the first images seen.

With several processes each brings its own images and all have the same bank, since every round gathers what was found.

Legend: n windows, D features, C classes.
"""

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
HARD, EASY = -1.0, -1.2  # decision values


class LinearHeads(nn.Module):
    """A decision value and four deltas of each class, both linear in the features; all in buffers.

    `fitted` says whether they are of the weights that they lie beside: a detector that trains on forgets them.
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
        """Decision values: 0 is the border, +1 and -1 the margins."""
        # Under autocast the product would be rounded to bf16, and neighbours in the ranking would change places.
        with torch.autocast(features.device.type, enabled=False):
            features = upcast(features)
            return features @ self.svm_weight.to(features.dtype).T + self.svm_bias.to(features.dtype)

    def regress(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n C 4"]:
        """Deltas t_x, t_y, t_w, t_h (`zoo.ops.coding`, unit weights) for each class."""
        with torch.autocast(features.device.type, enabled=False):
            features = upcast(features)
            deltas = features @ self.box_weight.to(features.dtype).flatten(0, 1).T
            return deltas.unflatten(1, (-1, 4)) + self.box_bias.to(features.dtype)

    def forget(self) -> None:
        """The features are about to change."""
        self.fitted.fill_(False)


class HeadFitter:
    """Fits `LinearHeads` to windows that are handed over round by round, by every process alike.

    Args:
        num_classes: C.
        num_features: D.
        device: of the features.
        cost: of the SVMs' errors.
        penalty: of the regressors' weights (lambda).
        bank_size: most examples that are kept; of more, the easiest negatives go.
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
        self.has_machines = False

    def add_round(
        self,
        features: Float[Tensor, "n D"],
        signs: Int8[Tensor, "n C"],
        deltas: Float[Tensor, "n 4"],
        labels: Int64[Tensor, "n"],
        regressed: Bool[Tensor, "n"],
    ) -> None:
        """Take in this process's windows of a round; n may be 0, and other processes may have other numbers.

        Args:
            features: of each window.
            signs: +1 for the ground truth of a class, -1 for a negative of it, 0 for neither.
            deltas: regression targets, read where `regressed`.
            labels: class whose regressor a window is an example of, read where `regressed`.
            regressed: windows near enough to an object.
        """
        features = upcast(features)
        if self.scale is None:
            lengths = torch.stack((features.norm(dim=1).sum(), features.new_tensor(float(len(features)))))
            total, count = all_reduce_sum(lengths)
            self.scale = MEAN_LENGTH * count / total.clamp(min=1e-12)
        features = features * self.scale
        self.ridge.add(features[regressed], deltas[regressed], labels[regressed])

        if self.has_machines:
            wrong = self._values(features) > HARD
            signs = torch.where((signs > 0) | wrong, signs, 0)
        used = (signs != 0).any(dim=1)
        new_features, new_signs = all_gather_rows(features[used]), all_gather_rows(signs[used])
        self.features = torch.cat((self.features.to(features.dtype), new_features))
        self.signs = torch.cat((self.signs, new_signs))
        self.num_new += len(new_signs)
        if self.num_new > REFIT_AFTER or not self.has_machines:
            self.refit()

    def refit(self) -> None:
        """Fit the machines to the bank, and let go what is easy for them."""
        self.weight, self.bias = fit_linear_svms(self.features, self.signs, self.cost, POSITIVE_WEIGHT, BIAS_SCALE)
        self.has_machines, self.num_new = True, 0
        values = self._values(self.features)
        self.signs = torch.where((self.signs > 0) | (values >= EASY), self.signs, 0)
        # Positives come before all negatives, the hardest of these first.
        rank = values.masked_fill(self.signs >= 0, -torch.inf).amax(dim=1)
        rank = rank.masked_fill((self.signs > 0).any(dim=1), torch.inf)
        kept = rank.argsort(descending=True, stable=True)[: self.bank_size]
        kept = kept[rank[kept] > -torch.inf].sort().values
        self.features, self.signs = self.features[kept], self.signs[kept]

    def _values(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        """Of the decision functions, as `LinearHeads.decide` has them: not rounded by autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return features @ self.weight.T + self.bias

    def finish(self, heads: LinearHeads) -> None:
        """Fit for the last time and write everything into the heads, the same on every process."""
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
