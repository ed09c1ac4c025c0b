"""Fast R-CNN (Girshick; arXiv 1504.08083).

The trunk runs once on a whole image, and a small head on the pooled features of each external proposal (selective
search). In the paper's form (VGG-16, one level, RoIPool), and with FPN (arXiv 1612.03144) and RoIAlign (1703.06870).

    image -> trunk [-> FPN] -> features
    proposals -> RoIPool | RoIAlign on the features -> RoI head: class and box of each proposal -> NMS by class

    section 2.1    RoI pooling: the largest value in each of 7 x 7 cells
    section 2.3    64 RoIs from each of two images; up to a quarter with IoU >= 0.5 with an object, the others from
                   [0.1, 0.5); equation 1: L = L_cls + lambda [u >= 1] L_loc, lambda = 1;
                   equations 2 and 3: smooth L1 of the four deltas of the object's class, linear from 1 on
    section 3.1    all proposals of an image are scored by one pass of the trunk; NMS for each class

Original code: rbgirshick/fast-rcnn. Deviations:
  Not in the paper, but in the original code:
  - difficult objects and crowds are not learned, and RoIs on them may be sampled as background;
  - ground truth boxes join the proposals in training.
  Neither in the paper nor in the original code:
  - deltas are divided by fixed standard deviations (0.1, 0.1, 0.2, 0.2), not by those measured on the data;
  - biases have the learning rate of the weights (paper and code: twice that);
  - the truncated SVD of section 3.1, which makes the head faster at a cost of 0.3 mAP, is left out;
  - proposals are OpenCV's selective search in another order (`zoo.proposals`).
  Not in the original code:
  - detections have scores from 0.001, as all detectors here (code: the highest 100 of an image and class, and 40 times
    the number of images of each class, before NMS).

Legend: B images, M objects, P proposals of an image (padded), R sampled regions of an image, C classes.
"""

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig, get_proposals
from zoo.nn.pretrained import follow_weights
from zoo.nn.roi import (
    POOLED_SIDE,
    RoIHead,
    build_pooled_trunk,
    roi_class_rows,
    roi_losses,
    roi_predictions,
    sample_rois,
    score_rois,
)
from zoo.nn.trunk import Norm, hidden_layers
from zoo.proposals import SelectiveSearch
from zoo.types import Batch, Losses, Prediction

POSITIVE_FRACTION = 0.25
FOREGROUND_IOU = 0.5
SMOOTH_L1_BETA = 1.0

Outputs = list[Float[Tensor, "B D _ _"]]
"""Feature maps for RoI pooling, fine to coarse."""


@final
class FastRCNN(Detector[Outputs]):
    """Fast R-CNN over any timm trunk, with or without FPN.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model with features at strides 4 to 32 (with FPN) or 16 (without).
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of the trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of the trunk that are not trained.
        pyramid: FPN, or the trunk's one level at stride 16 (paper).
        channels: of the pyramid.
        pooling: "align" (RoIAlign), or "pool" (RoIPool, one level only; paper).
        head_fcs: fully connected layers of the RoI head.
        head_width: of these.
        dropout: after each of these.
        rois_per_image: sampled for the losses.
        background_iou: lowest IoU of a sampled background RoI with an object (paper: 0.1, for hard examples); at 0
            images without objects are trained, too.
        score_threshold: of detections.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        proposals: the selective search whose boxes are scored.
        frame: resizing, normalisation and padding of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "Fast R-CNN"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "resnet50",
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        pyramid: bool = True,
        channels: int = 256,
        pooling: Literal["align", "pool"] = "align",
        head_fcs: int = 2,
        head_width: int = 1024,
        dropout: float = 0.0,
        rois_per_image: int = 64,
        background_iou: float = 0.1,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.3,
        detections_per_image: int = 100,
        proposals: SelectiveSearch = SelectiveSearch(),
        frame: FrameConfig = FrameConfig(min_size=600, max_size=1000),
        recipe: Recipe = Recipe(lr=0.001),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(FastRCNN, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments, proposals)
        self.rois_per_image = rois_per_image
        self.background_iou = background_iou
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        parts = build_pooled_trunk(trunk, pretrained, norm, frozen_stages, pyramid, channels, pooling)
        self.trunk, self.pyramid, width, self.roi_pooling = parts
        self.roi_head = RoIHead(width, POOLED_SIDE, 0, head_fcs, head_width, num_classes, dropout)
        if pretrained and not pyramid:  # the paper's fc6 and fc7 are VGG's
            self.roi_head.start_from(hidden_layers(trunk, pretrained))

    def encode(self, batch: Batch) -> Outputs:
        """Feature maps of whole images, for RoI pooling."""
        features = self.trunk(batch.images)
        levels = self.pyramid(features) if self.pyramid is not None else features
        return levels[: len(self.roi_pooling.strides)]

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Equations 1 to 3 on RoIs sampled from proposals and ground truth."""
        proposals, mask = get_proposals(batch)
        rois = sample_rois(
            proposals, mask, batch, self.rois_per_image, POSITIVE_FRACTION, FOREGROUND_IOU, self.background_iou
        )
        class_logits, deltas = score_rois(self.roi_head, self.roi_pooling, outputs, rois.boxes, rois.filled)
        return roi_losses(class_logits, deltas, rois, SMOOTH_L1_BETA)

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Class and box of every proposal, then NMS by class."""
        proposals, mask = get_proposals(batch)
        class_logits, deltas = score_rois(self.roi_head, self.roi_pooling, outputs, proposals, mask)
        limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
        return roi_predictions(class_logits, deltas, proposals, mask, batch.sizes, *limits)

    def class_rows(self) -> dict[str, list[int]]:
        """The outputs of the RoI head."""
        return roi_class_rows(self.num_classes)
