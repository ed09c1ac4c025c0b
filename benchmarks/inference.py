"""Time of inference, ours and torchvision's, with the same weights and images, in alternating order.

    python benchmarks/inference.py                          # ResNet-18 FPN, images of 427x320, on the CPU
    python benchmarks/inference.py --device cuda --size 800 --trunk resnet50 --batch 16

"inference" is everything from raw images to detections in their pixels. Post-processing is what follows the last layer:
for RetinaNet, from logits and deltas of all anchors; for Faster R-CNN, the RPN's selection of proposals and the
predictions from RoI logits, measured separately. Untrained logits are scaled and shifted so that as many scores are
above the threshold as those of a trained detector: about 1,000 pairs of anchor and class per image (RetinaNet), 300 of
RoI and class (Faster R-CNN). Memory is channels_last in ours, as in our configurations, and contiguous, the default, in
torchvision's.

The sliding-window CNN is compared with itself: dense evaluation and evaluation of crops, with the same windows at the
same stride, on one image of 213x160.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from _common import time_in_turn
from _torchvision_pairs import BOX_MODELS, TRUNKS, add_rates, build_pair, make_images, start_report
from torch import Tensor, nn
from torchvision.models.detection.rpn import concat_box_prediction_layers

from zoo.detector import Detector
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.retinanet import RetinaNet
from zoo.models.sliding_window import SlidingWindow
from zoo.nn.frame import FrameConfig
from zoo.nn.roi import roi_predictions, score_rois
from zoo.weights import load_weights

# Scores above the threshold, per image.
CANDIDATES = {"retinanet": 1000, "faster_rcnn": 300}


@torch.no_grad()
def scale_scores(theirs: nn.Module, ours: Detector, name: str, images: list[Tensor]) -> None:
    """Change the classification weights of both sides so that CANDIDATES scores per image are above the threshold."""
    theirs.eval()
    frames, _ = theirs.transform([image / 255 for image in images])
    features = theirs.backbone(frames.tensors)
    if name == "retinanet":
        head = theirs.head.classification_head
        nn.init.normal_(head.cls_logits.weight, std=0.5)
        logits = head(list(features.values()))
        cut = logits.flatten().float().kthvalue(logits.numel() - CANDIDATES[name] * len(images)).values
        head.cls_logits.bias += torch.logit(torch.tensor(theirs.score_thresh)).item() - cut
    else:
        layer = theirs.roi_heads.box_predictor.cls_score
        nn.init.normal_(layer.weight, std=2.0)
        nn.init.normal_(theirs.rpn.head.cls_logits.weight, std=1.0)
        nn.init.normal_(theirs.rpn.head.bbox_pred.weight, std=0.1)
        proposals, _ = theirs.rpn(frames, OrderedDict(features))
        pooled = theirs.roi_heads.box_roi_pool(features, proposals, frames.image_sizes)
        logits = layer(theirs.roi_heads.box_head(pooled))
        # A larger background bias leaves fewer RoIs with a foreground class above the threshold.
        low, high = -1000.0, 1000.0
        for _ in range(40):
            shift = (low + high) / 2
            shifted = logits.clone()
            shifted[:, 0] += shift
            count = (shifted.softmax(1)[:, 1:] > theirs.roi_heads.score_thresh).sum()
            low, high = (shift, high) if count > CANDIDATES[name] * len(images) else (low, shift)
        layer.bias[0] += low
    load_weights(ours, theirs.state_dict(), layout="torchvision")


def make_inference(model: nn.Module, images: list[Tensor], device: str, bf16: bool) -> Callable[[], object]:
    model.eval()

    @torch.inference_mode()
    def infer() -> object:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return model(images)

    return infer


@torch.no_grad()
def retinanet_post_processing(
    theirs: nn.Module, ours: RetinaNet, images: list[Tensor]
) -> dict[str, tuple[Callable, Callable]]:
    batch = ours.frame(images)
    outputs = ours.encode(batch)
    frames, _ = theirs.transform([image / 255 for image in images])
    features = list(theirs.backbone(frames.tensors).values())
    head = theirs.head(features)
    anchors = theirs.anchor_generator(frames, features)
    sizes = [level.shape[1] for level in outputs.logits]
    head_by_level = {key: list(value.split(sizes, dim=1)) for key, value in head.items()}
    anchors_by_level = [list(one.split(sizes)) for one in anchors]
    return {
        "post-processing": (
            lambda: ours.compute_predictions(outputs, batch),
            lambda: theirs.postprocess_detections(head_by_level, anchors_by_level, frames.image_sizes),
        )
    }


@torch.no_grad()
def faster_rcnn_post_processing(
    theirs: nn.Module, ours: FasterRCNN, images: list[Tensor]
) -> dict[str, tuple[Callable, Callable]]:
    batch = ours.frame(images)
    outputs = ours.encode(batch)
    proposals, mask = ours.propose(outputs, batch, 1000, 1000)
    class_logits, deltas = score_rois(ours.roi_head, ours.roi_pooling, outputs.features, proposals, mask)

    frames, _ = theirs.transform([image / 255 for image in images])
    features = theirs.backbone(frames.tensors)
    levels = list(features.values())
    objectness, rpn_deltas = theirs.rpn.head(levels)
    anchors = theirs.rpn.anchor_generator(frames, levels)
    counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
    objectness, rpn_deltas = concat_box_prediction_layers(objectness, rpn_deltas)
    their_proposals, _ = theirs.rpn(frames, OrderedDict(features))
    pooled = theirs.roi_heads.box_roi_pool(features, their_proposals, frames.image_sizes)
    their_logits, their_deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))

    def their_proposals_from_rpn() -> object:
        boxes = theirs.rpn.box_coder.decode(rpn_deltas, anchors).view(len(images), -1, 4)
        return theirs.rpn.filter_proposals(boxes, objectness, frames.image_sizes, counts)

    limits = (ours.score_threshold, ours.nms_threshold, ours.detections_per_image)
    return {
        "proposals": (lambda: ours.propose(outputs, batch, 1000, 1000), their_proposals_from_rpn),
        "post-processing": (
            lambda: roi_predictions(class_logits, deltas, proposals, mask, batch.sizes, *limits),
            lambda: theirs.roi_heads.postprocess_detections(
                their_logits, their_deltas, their_proposals, frames.image_sizes
            ),
        ),
    }


def build_sliding_windows(device: str) -> list[SlidingWindow]:
    """The same network twice, for dense evaluation and for evaluation of crops."""
    torch.manual_seed(0)
    pair = [
        SlidingWindow(
            num_classes=90,
            trunk="resnet18",
            stride=8,
            evaluation=evaluation,
            window_side=32,
            window_shapes=((32.0, 32.0), (48.0, 48.0), (64.0, 96.0), (96.0, 64.0)),
            head_kernel=1,
            head_dilation=1,
            class_widths=(256,),
            box_widths=(256,),
            frame=FrameConfig(min_size=160, max_size=320),
        )
        for evaluation in ("dense", "crops")
    ]
    pair[1].load_state_dict(pair[0].state_dict())
    for detector in pair:
        detector.configure_model()
        detector.to(device)
    return pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=320, help="shorter side of the images; the longer is 4/3 of it")
    parser.add_argument("--trunk", choices=TRUNKS, default="resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    height, width = arguments.size, arguments.size * 4 // 3 + (arguments.size == 320)
    device, rounds, batch = arguments.device, arguments.rounds, arguments.batch
    on_cpu = device == "cpu"
    report = start_report(
        f"Inference, images of {width}x{height}, {arguments.trunk} FPN",
        f"python benchmarks/inference.py {' '.join(sys.argv[1:])}".strip(),
        device,
    )
    images = make_images(batch, height, width, device)
    floats = [image / 255 for image in images]
    for name in BOX_MODELS:
        case = f"{name}_{TRUNKS[arguments.trunk]}"
        theirs, ours = build_pair(name, height, 2 * width, device, arguments.trunk)
        scale_scores(theirs, ours, name, images)
        theirs.eval(), ours.eval()
        for count in (1, batch):
            for precision, bf16, goal in (("fp32", False, 1.0), ("default", True, None)):
                timing = time_in_turn(
                    make_inference(ours, images[:count], device, bf16),
                    make_inference(theirs, floats[:count], device, False),
                    rounds,
                    device,
                )
                add_rates(report, f"{case}/inference/{precision}/batch{count}", timing, count, goal if on_cpu else None)
        if isinstance(ours, RetinaNet):
            parts = retinanet_post_processing(theirs, ours, images)
        else:
            assert isinstance(ours, FasterRCNN)
            parts = faster_rcnn_post_processing(theirs, ours, images)
        for part, sides in parts.items():
            with torch.no_grad():
                timing = time_in_turn(*sides, 2 * rounds, device)
            add_rates(
                report,
                f"{case}/{part}/fp32/batch{batch}",
                timing,
                batch,
                3.0 if on_cpu and part == "post-processing" else None,
            )
    dense, crops = build_sliding_windows(device)
    image = make_images(1, 160, 213, device)
    timing = time_in_turn(
        make_inference(dense, image, device, False),
        make_inference(crops, image, device, False),
        min(rounds, 3),
        device,
    )
    add_rates(report, "sliding_window_r18/dense vs crops/fp32/batch1", timing, 1, 20.0, peer_name="crops")
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
