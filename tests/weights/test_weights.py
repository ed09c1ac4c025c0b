"""What `load_weights` takes and what it refuses, by name; the parity of what it loads is in models/."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo.errors import InputError
from zoo.models import FasterRCNN, RetinaNet
from zoo.nn.frozen import FrozenBatchNorm
from zoo.weights import load_weights
from zoo.weights.torchvision import COCO_IDS


def small(num_classes: int = 3, seed: int = 0) -> RetinaNet:
    torch.manual_seed(seed)
    return RetinaNet(num_classes, trunk="resnet10t", channels=32, head_depth=1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_own_weights_from_each_kind_of_file(tmp_path: Path, suffix: str) -> None:
    source, file = small(seed=1), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), file)
    else:
        torch.save({"state_dict": source.state_dict()} if suffix == ".ckpt" else source.state_dict(), file)
    target = small()
    load_weights(target, file)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_the_first_wrong_parameter_is_named_and_nothing_changes() -> None:
    target = small()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = small(seed=1).state_dict()
    lacking = {name: value for name, value in state.items() if name != "regression.output.bias"}
    with pytest.raises(InputError, match=r"lacks regression\.output\.bias"):
        load_weights(target, lacking)
    with pytest.raises(InputError, match=r"has extra\.weight, which the detector does not have"):
        load_weights(target, state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(
        InputError, match=r"classification\.output\.weight has shape \(36, 32, 3, 3\).*\(27, 32, 3, 3\)"
    ):
        load_weights(target, small(4).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.pth: no such weights file"):
        load_weights(small(), tmp_path / "missing.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(InputError, match=rf"{name}: (is not a readable|holds more)"):
            load_weights(small(), tmp_path / name)
    torch.save({"code": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match=r"code\.pth: holds more than weights"):
        load_weights(small(), tmp_path / "code.pth")


def test_coco_s_80_classes_take_their_slots_of_torchvision_s_91() -> None:
    assert len(COCO_IDS) == 80
    assert (COCO_IDS[0], COCO_IDS[11], COCO_IDS[79]) == (1, 13, 90)  # person, stop sign, toothbrush

    retinanet = RetinaNet(80, trunk="resnet10t", channels=32, head_depth=1)
    state = {**retinanet.state_dict()}
    weight = torch.arange(9 * 91.0).repeat_interleave(32 * 9).view(9 * 91, 32, 3, 3)
    state |= {"classification.output.weight": weight, "classification.output.bias": torch.arange(9 * 91.0)}
    load_weights(retinanet, state, layout="torchvision")
    bias = retinanet.classification.output.bias.view(9, 80)
    assert bias[2, 11].item() == 2 * 91 + 13
    assert retinanet.classification.output.weight.view(9, 80, -1)[2, 11, 0].item() == 2 * 91 + 13

    faster = FasterRCNN(80, trunk="resnet10t", channels=32, head_width=16)
    state = {**faster.state_dict(), "roi_head.class_logits.weight": torch.zeros(91, 16)}
    state |= {"roi_head.class_logits.bias": torch.arange(91.0), "roi_head.box_deltas.weight": torch.zeros(364, 16)}
    state["roi_head.box_deltas.bias"] = torch.arange(364.0)
    load_weights(faster, state, layout="torchvision")
    assert faster.roi_head.class_logits.bias[[0, 1, 12]].tolist() == [0, 1, 13]
    assert faster.roi_head.box_deltas.bias.view(80, 4)[11].tolist() == [52, 53, 54, 55]


def test_another_number_of_classes_is_refused() -> None:
    state = {**small().state_dict(), "classification.output.weight": torch.zeros(9 * 91, 32, 3, 3)}
    with pytest.raises(InputError, match="has 91 classes, the detector 3"):
        load_weights(small(), state, layout="torchvision")


def test_own_weights_come_back_whatever_epsilon_the_trunk_has() -> None:
    detector = RetinaNet(3, trunk="tf_efficientnet_lite0", channels=32, head_depth=1)  # its batch norms have 1e-3
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    load_weights(detector, detector.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_published_files_without_epsilon() -> None:
    """Variance + our epsilon must be what the file's network had: the variance alone."""
    detector = RetinaNet(3, trunk="resnet18", channels=32, head_depth=1, norm="frozen")
    state = {**detector.state_dict(), "trunk.network.bn1.running_var": torch.full((64,), 0.25)}
    load_weights(detector, state, layout="torchvision", norm_eps=0.0)
    norm = detector.trunk.network.bn1
    assert isinstance(norm, FrozenBatchNorm)
    torch.testing.assert_close(norm.running_var + norm.eps, torch.full((64,), 0.25))
