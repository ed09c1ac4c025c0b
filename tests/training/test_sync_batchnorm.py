"""Synchronised batch norm: conversion and its reversal do not change the network's outputs."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from zoo.nn.trunk import Trunk
from zoo.training.sync_batchnorm import TimmSyncBatchNorm


@pytest.mark.parametrize("name", ["regnetx_002", "resnet10t"])
def test_conversion_keeps_outputs_and_parameters(name: str) -> None:
    torch.manual_seed(0)
    trunk = Trunk(name, (8, 16), False, "batch", 0)
    has_activations = any(isinstance(layer, BatchNormAct2d) for layer in trunk.modules())
    assert has_activations is (name == "regnetx_002")
    trunk(torch.rand(2, 3, 64, 64))  # non-initial statistics
    trunk.eval()
    image = torch.rand(1, 3, 64, 64)
    expected, keys = trunk(image), list(trunk.state_dict())
    kinds = [type(layer) for layer in trunk.modules()]
    weights = list(trunk.parameters())

    norms = TimmSyncBatchNorm()
    synced = norms.apply(trunk)
    assert synced is trunk
    assert not any(type(layer) in (nn.BatchNorm2d, BatchNormAct2d) for layer in trunk.modules())
    assert all(map(torch.equal, trunk(image), expected))
    assert all(one is other for one, other in zip(trunk.parameters(), weights, strict=True))
    with torch.no_grad():  # as training and moving to a device do
        for layer in trunk.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.weight.add_(0.5)
                layer.running_mean = layer.running_mean + 0.25
    trained = trunk(image)
    assert not any(map(torch.equal, trained, expected))

    assert norms.revert(trunk) is trunk
    assert [type(layer) for layer in trunk.modules()] == kinds
    assert list(trunk.state_dict()) == keys
    assert all(map(torch.equal, trunk(image), trained))
