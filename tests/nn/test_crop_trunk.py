"""Classifiers as trunks that return one vector of each crop."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from zoo.errors import InputError
from zoo.nn.frozen import FrozenBatchNorm
from zoo.nn.trunk import CropTrunk


def test_timm_model_returns_one_vector_a_crop() -> None:
    trunk = CropTrunk("resnet10t", 40, False, "batch", 0.0)
    assert trunk(torch.zeros(3, 3, 40, 40)).shape == (3, trunk.channels)


def test_vgg_keeps_its_hidden_layers() -> None:
    trunk = CropTrunk("vgg11", 64, False, "batch", 0.5)
    assert trunk.channels == 4096
    crops = torch.randn(2, 3, 64, 64)
    assert not torch.equal(trunk(crops), trunk(crops)), "dropout"
    trunk.eval()
    assert torch.equal(trunk(crops), trunk(crops))


def test_alexnet_equals_torchvision_up_to_fc7(tmp_path: Path) -> None:
    whole = torchvision.models.alexnet().eval()
    torch.save(whole.state_dict(), tmp_path / "alexnet.pth")
    trunk = CropTrunk("alexnet", 227, str(tmp_path / "alexnet.pth"), "batch", 0.5).eval()
    crops = torch.randn(1, 3, 227, 227)
    with torch.no_grad():
        torch.testing.assert_close(whole.classifier[6](trunk(crops)), whole(crops))


def test_local_timm_weights_are_loaded(tmp_path: Path) -> None:
    whole = timm.create_model("resnet10t").eval()
    torch.save(whole.state_dict(), tmp_path / "trunk.pth")
    trunk = CropTrunk("resnet10t", 64, str(tmp_path / "trunk.pth"), "frozen", 0.0).eval()
    assert any(isinstance(module, FrozenBatchNorm) for module in trunk.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in trunk.modules())
    crops = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(whole.fc(trunk(crops)), whole(crops), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("resnet1", 64, "has no trunk 'resnet1'"),
        ("vit_tiny_patch16_224", 100, "does not accept crops of 100 pixels"),
        ("alexnet", 20, "does not accept crops of 20 pixels"),
    ],
)
def test_unusable_trunks_raise_a_one_line_error(name: str, side: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CropTrunk(name, side, False, "batch", 0.0)
    assert "\n" not in str(caught.value)


def test_unusable_alexnet_files_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as trunk weights"):
        CropTrunk("alexnet", 227, str(tmp_path / "missing.pth"), "batch", 0.0)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"does not hold weights of trunk 'alexnet': features\.0\.weight"):
        CropTrunk("alexnet", 227, str(tmp_path / "other.pth"), "batch", 0.0)
