import random

import numpy as np
import pytest
import torch

from zoo.data.sampling import EvalSampler, TrainSampler, group_batches, seeded_rng


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [0, 1, 4, 11])
def test_eval_sampler_yields_each_image_once(world_size, num_images):
    samplers = [EvalSampler(range(num_images), world_size, rank) for rank in range(world_size)]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(num_images))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_train_sampler_yields_all_images_and_equally_many_in_every_process(world_size):
    samplers = [TrainSampler(range(11), world_size, rank, seed=4) for rank in range(world_size)]
    orders = []
    for epoch in (0, 1):
        keys = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            keys.append(list(sampler))
        assert len({len(part) for part in keys}) == 1
        flat = [key for part in keys for key in part]
        assert {key // 11 for key in flat} == {epoch}
        assert {key % 11 for key in flat} == set(range(11))
        assert len(flat) - 11 < world_size
        orders.append([key % 11 for key in flat])
    assert orders[0] != orders[1]


def test_order_depends_on_the_seed():
    assert list(TrainSampler(range(50), 1, 0, seed=1)) == list(TrainSampler(range(50), 1, 0, seed=1))
    assert list(TrainSampler(range(50), 1, 0, seed=1)) != list(TrainSampler(range(50), 1, 0, seed=2))


def test_group_batches_on_an_example():
    #           order  7 3 1 5 0 2    groups  a b a b b a   ->   (7 1) (3 5) and the incomplete batches 2 0
    assert group_batches([7, 3, 1, 5, 0, 2], [0, 1, 0, 1, 1, 0], 2) == [7, 1, 3, 5, 2, 0]


def test_grouped_batches_have_one_group_and_all_images_occur():
    groups = np.random.default_rng(0).integers(0, 2, 103)
    sampler = TrainSampler(range(103), 1, 0, seed=0, groups=groups, batch_size=8)
    sampler.set_epoch(3)
    indices = [key - 3 * 103 for key in sampler]
    assert sorted(indices) == list(range(103))
    batch_groups = [set(groups[indices[start : start + 8]]) for start in range(0, 88, 8)]
    assert all(len(batch) == 1 for batch in batch_groups)
    assert {0, 1} == set.union(*batch_groups)


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_seeded_rng_is_reproducible_and_restores_the_global_state():
    def with_seed(*entropy):
        with seeded_rng(*entropy):
            return draws()

    assert with_seed(1, 2, 3) == with_seed(1, 2, 3)
    for one, other in zip(with_seed(1, 2, 3), with_seed(1, 3, 2), strict=True):
        assert one != other
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = draws()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with_seed(5)
    assert draws() == expected
