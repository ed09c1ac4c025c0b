"""timm models as trunks, and the errors for models and weights that cannot be used."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from zoo.errors import InputError
from zoo.nn.frozen import FrozenBatchNorm
from zoo.nn.trunk import Trunk


@pytest.mark.parametrize(
    ("name", "strides"), [("resnet10t", (4, 8, 16, 32)), ("vgg11", (16,)), ("mobilenetv3_small_050", (8, 16, 32))]
)
def test_maps_have_their_strides_and_channels(name: str, strides: tuple[int, ...]) -> None:
    trunk = Trunk(name, strides, pretrained=False, norm="batch", frozen_stages=0)
    maps = trunk(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(trunk.channels, strides, strict=True)
    ]


def test_frozen_norms_do_not_update_their_statistics() -> None:
    trunk = Trunk("resnet10t", (32,), pretrained=False, norm="frozen", frozen_stages=0).train()
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in trunk.modules())
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    trunk(torch.randn(2, 3, 64, 64) * 5)
    assert all(torch.equal(before[key], value) for key, value in trunk.state_dict().items())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_frozen_norm_is_batch_norm_in_eval_mode(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    norm = torch.nn.BatchNorm2d(5).eval()
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        value.normal_()
    norm.running_var.uniform_(0.5, 2)
    frozen, exact = FrozenBatchNorm(norm), norm.double()
    frozen = frozen.double() if dtype == torch.float64 else frozen  # bf16 activations have float32 statistics
    features, gradient = (torch.randn(2, 5, 3, 4).to(dtype).to(memory_format=memory_format) for _ in range(2))
    given, reference = features.clone().requires_grad_(), features.double().requires_grad_()
    found, expected = frozen(given), exact(reference)
    found.backward(gradient)
    expected.backward(gradient.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    for computed, wanted in ((found, expected), (given.grad, reference.grad)):
        assert computed is not None
        assert wanted is not None
        assert computed.dtype == dtype
        assert computed.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(computed.double(), wanted, rtol=tolerance, atol=tolerance)


def test_frozen_stages_are_the_first_ones() -> None:
    trunk = Trunk("resnet18", (8, 16, 32), pretrained=False, norm="batch", frozen_stages=2).train()
    trainable = {name.split(".")[1] for name, weight in trunk.named_parameters() if weight.requires_grad}
    assert trainable == {"layer2", "layer3", "layer4"}
    assert isinstance(trunk.network.bn1, FrozenBatchNorm)
    assert isinstance(trunk.network.layer2[0].bn1, torch.nn.BatchNorm2d)


def test_frozen_stages_of_vgg() -> None:
    trunk = Trunk("vgg16", (16,), pretrained=False, norm="batch", frozen_stages=2)
    frozen = [tuple(weight.shape[:2]) for weight in trunk.parameters() if weight.ndim == 4 and not weight.requires_grad]
    assert frozen == [(64, 3), (64, 64), (128, 64), (128, 128)]  # conv1_1 to conv2_2, as in py-faster-rcnn


def test_unknown_name_raises_with_suggestions() -> None:
    with pytest.raises(InputError, match=r"has no trunk 'resnet500'; did you mean .*resnet50.*\?"):
        Trunk("resnet500", (8,), False, "batch", 0)


def test_missing_stride_raises() -> None:
    with pytest.raises(InputError, match=r"'resnet10t' has no features at stride 3"):
        Trunk("resnet10t", (3,), False, "batch", 0)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_transformers_without_maps_of_any_size_raise(name: str) -> None:
    with pytest.raises(InputError, match=f"trunk '{name}' (returns maps of shape|does not accept images of any size)"):
        Trunk(name, (8,), False, "batch", 0)


def test_weights_from_a_local_file(tmp_path: Path) -> None:
    whole = timm.create_model("resnet10t")
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    trunk = Trunk("resnet10t", (32,), str(tmp_path / "weights.safetensors"), "batch", 0)
    assert torch.equal(trunk.network.layer1[0].conv1.weight, whole.layer1[0].conv1.weight)


def test_missing_or_other_weights_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors: no such trunk weights file"):
        Trunk("resnet10t", (32,), "nowhere.safetensors", "batch", 0)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: does not hold weights of trunk 'resnet10t'"):
        Trunk("resnet10t", (32,), str(tmp_path / "other.safetensors"), "batch", 0)


def test_pretrained_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(InputError, match=r"could not be downloaded .* --model\.pretrained /path/to/weights"):
        Trunk("resnet18", (32,), True, "batch", 0)
