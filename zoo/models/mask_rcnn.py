"""Mask R-CNN (He, Gkioxari, Dollar, Girshick; arXiv 1703.06870).

    Faster R-CNN with FPN (`zoo.models.faster_rcnn`) and, beside the box head, a mask head:

    section 3    RoIAlign: no rounding of RoIs or cells, bilinear samples (`zoo.nn.roi.pyramid_roi_align`);
                 L = L_cls + L_box + L_mask, where L_mask is the mean binary cross-entropy of a sigmoid at each pixel of
                 the mask of the RoI's class: masks of other classes do not count, and only positive RoIs have a mask
    figure 4     the head with FPN: RoIs of 14 x 14, four 3x3 convolutions, a deconvolution, masks of 28 x 28
    section 3.1  training: the mask target is the part of the object's mask inside the RoI;
                 testing: the mask head runs on the highest-scoring boxes after NMS (100 with FPN), and the mask of the
                 predicted class is resized to the box and cut at 0.5

Original code: facebookresearch/Detectron. Deviations: those of Faster R-CNN, and, as in torchvision, so that its
weights load:
  - mask targets are pooled from the object's pixels by RoIAlign, so they are shares (code: polygons drawn at 28 x 28);
  - the loss has the mean over all positive RoIs of a step (code: of each image).

Legend: B images, R sampled RoIs, K detections, S side of the masks (28), C classes.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.detector import SCORE_THRESHOLD, Recipe, plain_arguments
from zoo.models.faster_rcnn import POSITIVE_FRACTION, FasterRCNN, Outputs
from zoo.nn.frame import FrameConfig
from zoo.nn.mask_head import POOLED_SIDE, MaskHead, mask_loss, mask_targets, masks_of_class
from zoo.nn.pretrained import follow_weights
from zoo.nn.roi import RoIPooling
from zoo.nn.trunk import Norm
from zoo.ops.matching import gather_matched
from zoo.ops.precision import upcast
from zoo.types import Batch, Losses, Prediction

MASK_WIDTH = 256


@final
class MaskRCNN(FasterRCNN):
    """Mask R-CNN with FPN over any timm trunk.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model with features at strides 4 to 32.
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of the trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of the trunk that are not trained.
        pyramid_norm: batch norm in the FPN.
        channels: of the pyramid.
        anchor_scales: anchor sizes of a level, in strides of that level.
        rpn_depth: convolutions of the RPN.
        head_convs: convolutions of the box head.
        head_fcs: fully connected layers of the box head.
        head_width: of these.
        mask_convs: convolutions of the mask head.
        mask_width: of these.
        mask_norm: batch norm after each of these.
        rois_per_image: sampled for the losses of the heads.
        proposals_before_nms: of each level, in training and in testing.
        proposals_after_nms: of each image, in training and in testing.
        score_threshold: of detections.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        frame: resizing, normalisation and padding of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "Mask R-CNN"
    mask_side = 2 * POOLED_SIDE

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "resnet50",
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        pyramid_norm: bool = False,
        channels: int = 256,
        anchor_scales: tuple[float, ...] = (8.0,),
        rpn_depth: int = 1,
        head_convs: int = 0,
        head_fcs: int = 2,
        head_width: int = 1024,
        mask_convs: int = 4,
        mask_width: int = MASK_WIDTH,
        mask_norm: bool = False,
        rois_per_image: int = 512,
        proposals_before_nms: tuple[int, int] = (2000, 1000),
        proposals_after_nms: tuple[int, int] = (2000, 1000),
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        frame: FrameConfig = FrameConfig(),
        recipe: Recipe = Recipe(lr=0.02),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(MaskRCNN, locals())
        super().__init__(
            num_classes,
            class_names,
            trunk,
            pretrained,
            norm,
            frozen_stages,
            pyramid_norm=pyramid_norm,
            channels=channels,
            anchor_scales=anchor_scales,
            rpn_depth=rpn_depth,
            head_convs=head_convs,
            head_fcs=head_fcs,
            head_width=head_width,
            rois_per_image=rois_per_image,
            proposals_before_nms=proposals_before_nms,
            proposals_after_nms=proposals_after_nms,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_image=detections_per_image,
            frame=frame,
            recipe=recipe,
            channels_last=channels_last,
        )
        self.arguments = arguments | {"class_names": list(self.class_names)}
        self.mask_norm = mask_norm
        self.mask_pooling = RoIPooling(self.roi_pooling.strides, "align", POOLED_SIDE)
        self.mask_head = MaskHead(channels, mask_convs, mask_width, num_classes, mask_norm)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Faster R-CNN's losses, and L_mask of the positive RoIs."""
        rois = self.sample_rois(outputs, batch)
        losses = self.box_losses(outputs, batch, rois)
        count = max(int(self.rois_per_image * POSITIVE_FRACTION), 1)  # positive RoIs come first
        choose = self.mask_norm or rois.labels.is_cpu
        if choose:
            # Batch norm must not see other RoIs, and on a CPU they cost time. On a GPU this waits for the device.
            count = max(int(((rois.labels >= 0) & rois.filled)[:, :count].sum(dim=1).max()), 1)
        boxes, labels, matched = rois.boxes[:, :count], rois.labels[:, :count], rois.matched[:, :count]
        masks = get_masks(batch)
        has_mask = gather_matched(masks.flatten(2).any(dim=2).bool(), matched)  # some objects may have none
        positive = (labels >= 0) & rois.filled[:, :count] & has_mask
        targets = mask_targets(masks, matched, upcast(boxes), 2 * POOLED_SIDE).flatten(0, 1)
        pooled, labels, positive = self.mask_pooling(outputs.features, boxes), labels.flatten(), positive.flatten()
        if choose:
            chosen = positive.nonzero()[:, 0]
            pooled, labels, targets, positive = pooled[chosen], labels[chosen], targets[chosen], positive[chosen]
        return losses | {"mask": mask_loss(self.mask_head(pooled), labels, targets, positive)}

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Faster R-CNN's detections, each with the mask of its class."""
        found = super().compute_predictions(outputs, batch)
        if len(found) == 1:  # not padded, so that it can be exported
            boxes, labels = found[0]["boxes"][None], found[0]["labels"][None]
        else:
            boxes = pad_sequence([prediction["boxes"] for prediction in found], batch_first=True)
            labels = pad_sequence([prediction["labels"] for prediction in found], batch_first=True)
        logits = self.mask_head(self.mask_pooling(outputs.features, boxes))
        masks = masks_of_class(logits, labels.flatten()).sigmoid().unflatten(0, labels.shape)
        if len(found) == 1:
            return [{**found[0], "masks": masks[0]}]
        return [
            {**prediction, "masks": of_image[: len(prediction["scores"])]}
            for prediction, of_image in zip(found, masks, strict=True)
        ]

    def class_rows(self) -> dict[str, list[int]]:
        """The outputs of the box head, and a mask of each class."""
        return super().class_rows() | {"mask_head.output": [*range(self.num_classes)]}


def get_masks(batch: Batch) -> UInt8[Tensor, "B M H W"]:
    """Masks of a batch's objects.

    Raises:
        ValueError: there are objects but no masks.
    """
    num_images, num_objects = batch.boxes.shape[:2]
    if batch.masks is None and num_objects:
        raise ValueError("this batch has no masks; set DetectionDataModule.with_masks, or give targets with masks")
    if batch.masks is None:
        return batch.labels.new_zeros(num_images, 0, *batch.images.shape[-2:], dtype=torch.uint8)
    return batch.masks
