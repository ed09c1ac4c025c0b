"""Starting from a detector's weights: what is kept, what starts anew, what is refused."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from darknet_files import write_darknet
from forms import FORMS, FRAME
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.io.class_names import COCO_CLASSES, VOC_CLASSES
from zoo.models import MODELS, CornerNet, FasterRCNN, RetinaNet, YOLOv1
from zoo.nn.pretrained import WeightsWarning
from zoo.weights import start_from
from zoo.weights.published import YOLO_TINY
from zoo.weights.torchvision import COCO_IDS

DATA = ["king", "Dog", "queen"]  # COCO knows "dog" only
DOG = COCO_CLASSES.index("dog")


def save_checkpoint(detector: Detector, file: Path) -> Path:
    content: dict[str, Any] = {"state_dict": detector.state_dict()}
    detector.on_save_checkpoint(content)
    torch.save(content, file)
    return file


def build(form: str, names: list[str], seed: int) -> Detector:
    torch.manual_seed(seed)
    name, arguments = FORMS[form]
    detector = MODELS[name](num_classes=len(names), class_names=names, **({"frame": FRAME} | arguments))
    for tensor in detector.state_dict().values():  # biases, which are constant at the start, differ too
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.rand(tensor.shape))
    return detector


def values(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


LARGE = [form for form in FORMS if form.endswith("of the paper")]
OF_EACH = [pytest.param(form, marks=[pytest.mark.slow] if form in LARGE else []) for form in FORMS]


@pytest.mark.parametrize("form", OF_EACH)
def test_classes_that_both_know_keep_their_outputs(form: str, tmp_path: Path) -> None:
    """Checked by what the network computes, not by the declared rows: an output of a class stays the same."""
    source, target = build(form, ["a", "b", "c"], 0), build(form, ["c", "x", "A", "y"], 1)
    before = values(target)
    start = start_from(target, save_checkpoint(source, tmp_path / "old.ckpt"))
    assert (start.kept_classes, start.new_classes) == (["c", "A"], ["x", "y"])
    assert not start.assumed
    declared = {name for name in before if before[name].shape != source.state_dict()[name].shape}
    assert set(start.renewed) == declared
    for name, value in target.state_dict().items():
        if name not in declared:
            assert torch.equal(value, source.state_dict()[name]), name
    assert all(name in str(start) for name in declared)

    same = build(form, ["c", "b", "a"], 2)
    start = start_from(same, save_checkpoint(source, tmp_path / "old.ckpt"))
    assert (start.renewed, start.new_classes) == ([], [])
    batch = ([torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)], None)
    torch.manual_seed(0)
    ours = {(name, round(score, 4)) for name, score in found(same, batch)}
    torch.manual_seed(0)
    assert ours == {(name, round(score, 4)) for name, score in found(source, batch)}


def found(detector: Detector, batch: Any) -> list[tuple[str, float]]:
    prediction = detector.eval()(*batch)[0]
    return list(zip(detector.names(prediction), prediction["scores"].tolist(), strict=True))


def torchvision_network(kind: str) -> torch.nn.Module:
    torch.manual_seed(3)
    backbone = {"backbone_name": "resnet18", "weights": None, "trainable_layers": 5}
    if kind == "faster_rcnn":
        return torchvision.models.detection.FasterRCNN(resnet_fpn_backbone(**backbone), num_classes=91)
    levels = {
        "returned_layers": [2, 3, 4],
        "extra_blocks": torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
    }
    return torchvision.models.detection.RetinaNet(
        resnet_fpn_backbone(**backbone, **levels), num_classes=91,
        anchor_generator=torchvision.models.detection.retinanet._default_anchorgen(),
    )  # fmt: skip


def our_network(kind: str, names: list[str], **arguments: Any) -> Detector:
    torch.manual_seed(0)
    if kind == "faster_rcnn":
        return FasterRCNN(len(names), names, trunk="resnet18", anchor_scales=(8.0,), **arguments)
    return RetinaNet(len(names), names, trunk="resnet18", extra_levels="p6p7_from_pyramid", **arguments)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_a_file_of_torchvision(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "coco.pth"
    torch.save(torchvision_network(kind).state_dict(), file)
    whole, target = our_network(kind, list(COCO_CLASSES)), our_network(kind, DATA)
    assert start_from(whole, file).renewed == []
    before = values(target)
    start = start_from(target, file, "torchvision")
    heads = {
        "faster_rcnn": ["roi_head.class_logits", "roi_head.box_deltas"],
        "retinanet": ["classification.output"],
    }[kind]
    assert start.renewed == [f"{head}.{part}" for head in heads for part in ("weight", "bias")]
    assert (start.kept_classes, start.new_classes) == (["Dog"], ["king", "queen"])
    assert f"{', '.join(start.renewed)} start anew for king, queen (Dog keep theirs)" in str(start)
    new, theirs = values(target), values(whole)
    for name, value in new.items():
        if name not in start.renewed and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, theirs[name]), name
    if kind == "retinanet":
        by_class, old, coco = (
            state["classification.output.weight"].unflatten(0, (9, -1)) for state in (new, before, theirs)
        )
        assert torch.equal(by_class[:, 1], coco[:, DOG])
        assert torch.equal(by_class[:, [0, 2]], old[:, [0, 2]])
    else:
        logits, old, coco = (state["roi_head.class_logits.weight"] for state in (new, before, theirs))
        assert torch.equal(logits[[0, 2]], coco[[0, 1 + DOG]])
        assert torch.equal(logits[[1, 3]], old[[1, 3]])
        deltas, coco = new["roi_head.box_deltas.weight"].unflatten(0, (-1, 4)), theirs["roi_head.box_deltas.weight"]
        assert torch.equal(deltas[1], coco.unflatten(0, (-1, 4))[DOG])


def test_the_published_epsilon_and_slots_of_torchvision(tmp_path: Path) -> None:
    """COCO_V1's networks have batch norms with epsilon 0; slot 18 is COCO's id of dogs."""
    state = torchvision_network("retinanet").state_dict()
    state["backbone.body.bn1.running_var"].fill_(0.25)
    state["head.classification_head.cls_logits.bias"] = torch.arange(91.0).repeat(9)
    torch.save(state, tmp_path / "coco.pth")
    target = our_network("retinanet", DATA, norm="frozen")
    start_from(target, tmp_path / "coco.pth")
    norm = target.trunk.network.bn1
    torch.testing.assert_close(norm.running_var + norm.eps, torch.full((64,), 0.25))
    assert target.classification.output.bias.view(9, 3)[:, 1].tolist() == [COCO_IDS[DOG]] * 9
    assert COCO_IDS[DOG] == 18


def test_files_whose_classes_have_no_names(tmp_path: Path) -> None:
    source = RetinaNet(3, ["a", "b", "c"], trunk="resnet10t", channels=32, head_depth=1)
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    target = RetinaNet(3, DATA, trunk="resnet10t", channels=32, head_depth=1)
    start = start_from(target, tmp_path / "plain.pth")
    assert "its classes have no names and are taken to be the data's, in their order" in str(start)
    assert torch.equal(target.classification.output.weight, source.classification.output.weight)
    other = RetinaNet(2, ["a", "b"], trunk="resnet10t", channels=32, head_depth=1)
    start = start_from(other, tmp_path / "plain.pth", "zoo")
    assert start.renewed == ["classification.output.weight", "classification.output.bias"]
    assert (start.kept_classes, start.new_classes, start.assumed) == ([], ["a", "b"], False)


def test_a_released_file_of_darknet(tmp_path: Path) -> None:
    file = tmp_path / "tiny-yolov1.weights"
    source = YOLO_TINY.build()
    num_cells, num_classes = 49, len(VOC_CLASSES)
    write_darknet(file, source, {"head.output.bias": torch.arange(len(source.head.output.bias)).float()})
    target = YOLOv1(2, ["tree", "dog"], "darknet6", neck=(1024, 256), head_widths=(), frame=source.frame.config)
    start = start_from(target, file)
    assert (start.renewed, start.kept_classes) == (["head.output.weight", "head.output.bias"], ["dog"])
    bias = target.head.output.bias
    dog = VOC_CLASSES.index("dog")
    assert bias[: 2 * num_cells].view(num_cells, 2)[:, 1].tolist() == [
        num_classes * cell + dog for cell in range(num_cells)
    ]
    rest = torch.arange(len(source.head.output.bias)).float()[num_cells * num_classes :]
    assert torch.equal(bias[2 * num_cells :], rest)  # confidences and boxes


def test_pixels_follow_the_file_where_they_are_asked_to(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"trunk": "resnet10t", "channels": 32, "head_depth": 1}
    source = RetinaNet(1, ["a"], **arguments)
    source.set_pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    file = save_checkpoint(source, tmp_path / "own.ckpt")
    target = RetinaNet(1, ["a"], **arguments)
    with pytest.warns(WeightsWarning, match=r"frame\.mean .* inputs differ by up to .* standard deviations"):
        start_from(target, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsWarning)
        start_from(target, file, follow_pixels=True)
    assert target.frame.config.mean == (0.0, 0.0, 0.0)
    assert (target.frame.mean, target.frame.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert target.arguments["frame"]["std"] == [1.0, 1.0, 1.0]


def test_what_does_not_fit_is_told_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "coco.pth"
    torch.save(torchvision_network("retinanet").state_dict(), file)
    fewer = our_network("retinanet", DATA, head_depth=2)
    with pytest.warns(
        WeightsWarning, match=r"coco\.pth: has 8 tensors that the detector does not have \(classification"
    ):
        start_from(fewer, file)
    more = our_network("retinanet", DATA, head_depth=5)
    with pytest.warns(WeightsWarning, match=r"coco\.pth: lacks 4 tensors of the detector in their shapes"):
        start_from(more, file)

    other = RetinaNet(3, DATA, trunk="resnet10t", channels=32)
    before = values(other)
    with pytest.raises(InputError, match=r"coco\.pth: is of another network: of the \d+ weights of this RetinaNet"):
        start_from(other, file)
    assert all(torch.equal(value, before[name]) for name, value in values(other).items())
    with pytest.raises(InputError, match="torchvision has no weights for a CornerNet"):
        start_from(CornerNet(3, DATA, trunk="resnet10t", channels=32), file)
    with pytest.raises(InputError, match=r"coco\.pth: is not a file of layout cornernet"):
        start_from(other, file, "cornernet")
    with pytest.raises(InputError, match=r"coco\.pth: has \d+ bytes, which is not a header and float32"):
        start_from(other, file, "darknet")
    with pytest.raises(InputError, match=r"none\.pth: no such weights file"):
        start_from(other, tmp_path / "none.pth")
