"""Numbers of sampled positives and negatives, and uniform sampling probability."""

import torch

from zoo.ops.sampling import sample


def flags(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def test_numbers_of_positives_and_negatives() -> None:
    positive = flags("xxxxx.....", "x.........", "..........")
    negative = flags(".....xxx..", ".xxxxxxxxx", "..........")
    chosen, filled = sample(positive, negative, num=6, positive_fraction=0.5)
    assert chosen.shape == filled.shape == (3, 6)
    num_positive = (positive.gather(1, chosen) & filled).sum(1).tolist()
    num_negative = (negative.gather(1, chosen) & filled).sum(1).tolist()
    # three positives of five and all three negatives; one and five; no candidates
    assert num_positive == [3, 1, 0]
    assert num_negative == [3, 5, 0]
    assert filled.sum(1).tolist() == [6, 6, 0]
    for row, mask in zip(chosen, filled, strict=True):
        assert len(set(row[mask].tolist())) == mask.sum(), "a candidate was sampled twice"


def test_fewer_candidates_than_slots() -> None:
    chosen, filled = sample(flags("x.."), flags(".x."), num=256, positive_fraction=0.5)
    assert chosen.shape == (1, 3)
    assert sorted(chosen[filled].tolist()) == [0, 1]


def test_positive_fraction_is_relative_to_the_requested_number() -> None:
    """With fewer candidates than slots, 128 of 512 may be positive, not a quarter of the candidates."""
    positive = torch.arange(100)[None] < 60
    chosen, filled = sample(positive, ~positive, num=512, positive_fraction=0.25)
    assert (positive.gather(1, chosen) & filled).sum() == 60


def test_candidates_are_sampled_uniformly() -> None:
    torch.manual_seed(0)
    positive = flags("xxxxxxxx" + "." * 24).expand(4000, -1)
    chosen, filled = sample(positive, ~positive, num=8, positive_fraction=0.25)
    hits = torch.zeros(32).index_add_(0, chosen.flatten(), filled.flatten().float()) / 4000
    # 2 of 8 positives, 6 of 24 negatives: each a quarter of the time; 4000 draws have a standard error of .007
    assert (hits - 0.25).abs().max() < 0.035
