"""Example bank and fitted weights of R-CNN's SVMs and box regressors."""

import torch

from zoo.nn.linear_heads import EASY, HARD, HeadFitter, LinearHeads
from zoo.ops.distributed import all_gather_rows

Round = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_fitter(bank_size: int = 10000) -> HeadFitter:
    return HeadFitter(2, 6, torch.device("cpu"), cost=0.1, penalty=1.0, bank_size=bank_size)


def make_round(seed: int, num: int = 60) -> Round:
    """Features of two separable classes, and negatives around zero."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num, 6, generator=random)
    signs = torch.full((num, 2), -1, dtype=torch.int8)
    for label in range(2):
        features[label::10, label] += 4
        signs[label::10, label] = 1
    signs[5, 0] = 0
    regressed = (signs == 1).any(dim=1)
    deltas = 0.1 * features[:, :4]
    return features, signs, deltas, (signs[:, 1] == 1).long(), regressed


def test_easy_negatives_are_removed_and_positives_kept() -> None:
    fitter = make_fitter()
    rounds = [make_round(seed) for seed in range(3)]
    fitter.add_round(*rounds[0])
    values = fitter.features @ fitter.weight.T + fitter.bias
    assert (fitter.signs == 1).sum() == (rounds[0][1] == 1).sum()
    assert (values[fitter.signs == -1] >= EASY).all()
    assert 0 < len(fitter.signs) < 60
    before = len(fitter.signs)
    fitter.add_round(*rounds[1])
    added = fitter.features[before:] @ fitter.weight.T + fitter.bias
    assert (added[fitter.signs[before:] == -1] > HARD).all(), "only hard negatives are added"
    assert (fitter.signs == 1).sum() == 2 * (rounds[0][1] == 1).sum()


def test_bounded_bank_keeps_positives_and_hardest_negatives() -> None:
    unbounded, bounded = make_fitter(), make_fitter(bank_size=16)
    one = make_round(0)
    unbounded.add_round(*one)
    bounded.add_round(*one)
    assert len(unbounded.signs) > 16 == len(bounded.signs)
    assert (bounded.signs == 1).sum() == (one[1] == 1).sum()
    kept = {tuple(row) for row in bounded.features.tolist()}
    values = (unbounded.features @ unbounded.weight.T + unbounded.bias).masked_fill(unbounded.signs != -1, -10)
    is_positive = (unbounded.signs == 1).any(dim=1)
    hardest = values.amax(dim=1).masked_fill(is_positive, 10).argsort(descending=True)[:16]
    assert kept == {tuple(row) for row in unbounded.features[hardest].tolist()}


def test_feature_scale_is_folded_into_the_weights() -> None:
    """Features a hundred times larger give the same decision values and deltas."""
    heads, large_heads = LinearHeads(2, 6), LinearHeads(2, 6)
    for target, factor in ((heads, 1.0), (large_heads, 100.0)):
        fitter = make_fitter()
        for seed in range(2):
            features, *rest = make_round(seed)
            fitter.add_round(features * factor, *rest)
        fitter.finish(target)
        assert target.fitted
    features = make_round(9)[0]
    torch.testing.assert_close(heads.decide(features), large_heads.decide(features * 100), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(heads.regress(features), large_heads.regress(features * 100), rtol=1e-3, atol=1e-3)
    assert heads.decide(features)[0].tolist()[0] > 0 > heads.decide(features)[3].max()


def test_heads_fitted_to_no_windows_are_zero() -> None:
    heads, fitter = LinearHeads(2, 6), make_fitter()
    fitter.add_round(*(part[:0] for part in make_round(0)))
    fitter.finish(heads)
    assert (heads.decide(torch.ones(1, 6)) == 0).all()
    assert (heads.regress(torch.ones(1, 6)) == 0).all()


def test_gather_in_one_process_returns_its_rows() -> None:
    rows = torch.randn(3, 2)
    assert all_gather_rows(rows) is rows
