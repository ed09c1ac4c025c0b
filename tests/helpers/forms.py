"""Small configurations of every detector, for the contract, export and distributed tests."""

from dataclasses import replace

from zoo.nn.frame import FrameConfig
from zoo.proposals import SelectiveSearch

FRAME = FrameConfig(min_size=96, max_size=160)
SQUARE = FrameConfig(min_size=128, max_size=128, stretch=True)
LETTERBOX = FrameConfig(min_size=128, max_size=128, letterbox=True)
SSD_FRAME = FrameConfig(min_size=288, max_size=288, stretch=True)  # the last level has more than one cell
SEARCH = SelectiveSearch("single", width=None, min_side=8, limit=100)
FEW_REGIONS: dict[str, object] = {
    "rois_per_image": 64,
    "proposals_before_nms": (200, 100),
    "proposals_after_nms": (200, 100),
}
HOURGLASSES: dict[str, object] = {
    "stage_channels": (16, 16, 24),
    "stage_depths": (1, 1, 1),
    "stem_channels": 16,
    "channels": 32,
    "pooled_channels": 16,
}


PAPER_SSD: tuple[str, dict[str, object]] = (
    "ssd",
    {"trunk": "vgg11_bn", "frame": SSD_FRAME, "candidates_per_class": 100},
)
"""Its levels need a large frame, which takes long: for slow tests only."""

# name -> (key of MODELS, arguments): small configurations, one for each variant of a detector's architecture.
FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "retinanet": ("retinanet", {"trunk": "resnet10t"}),
    "faster_rcnn": ("faster_rcnn", {"trunk": "resnet10t", **FEW_REGIONS}),
    "fast_rcnn": ("fast_rcnn", {"trunk": "resnet10t", "proposals": SEARCH, "background_iou": 0.0}),
    "fast_rcnn of the paper": (
        "fast_rcnn",
        {
            "trunk": "vgg11_bn",
            "pyramid": False,
            "pooling": "pool",
            "head_width": 64,
            "proposals": SEARCH,
            "background_iou": 0.0,  # a single image has hardly any regions with a low IoU with its objects
        },
    ),
    "ssd": ("ssd", {"trunk": "resnet10t", "strides": (8, 16, 32), "extra_levels": "separable", "frame": SSD_FRAME}),
    "rcnn": (
        "rcnn",
        {"trunk": "resnet10t", "crop_size": 48, "context": 4, "windows_per_batch": 64, "proposals": SEARCH},
    ),
    "rcnn of the paper": (
        "rcnn",
        {"trunk": "alexnet", "crop_size": 67, "windows_per_batch": 64, "proposals": SEARCH, "regress_boxes": False},
    ),
    "faster_rcnn of the paper": (
        "faster_rcnn",
        {
            "trunk": "vgg11_bn",
            "pyramid": False,
            "pooling": "pool",
            "anchor_scales": (2.0, 4.0, 8.0),
            "head_width": 64,
            "min_proposal_side": 4.0,
            **FEW_REGIONS,
        },
    ),
    "faster_rcnn of torchvision's second": (
        "faster_rcnn",
        {
            "trunk": "resnet10t",
            "pyramid_norm": True,
            "rpn_depth": 2,
            "head_convs": 2,
            "head_fcs": 1,
            "channels": 64,
            **FEW_REGIONS,
        },
    ),
    "mask_rcnn": (
        "mask_rcnn",
        {"trunk": "resnet10t", "channels": 64, "head_width": 64, "mask_convs": 2, "mask_width": 32, **FEW_REGIONS},
    ),
    "retinanet with GroupNorm and GIoU": (
        "retinanet",
        {"trunk": "resnet10t", "group_norm": True, "box_loss": "giou", "channels": 64},
    ),
    "yolov1": (
        "yolov1",
        {"trunk": "resnet10t", "neck": (64,), "head": "conv", "head_widths": (), "grid": 8, "frame": SQUARE},
    ),
    "yolov1 of the paper": (
        "yolov1",
        {"trunk": "darknet6", "neck": (64, 64), "head": "fc", "head_widths": (256,), "grid": 2, "frame": SQUARE},
    ),
    "yolov1 of darknet's weights": (
        "yolov1",
        {
            "trunk": "darknet6",
            "neck": (64,),
            "head": "local",
            "head_widths": (64,),
            "dropout": 0.0,  # with dropout, so narrow a layer cannot be overfitted
            "grid": 2,
            "frame": SQUARE,
        },
    ),
    "sliding_window": (
        "sliding_window",
        {
            "trunk": "resnet10t",
            "stride": 8,
            "window_side": 28,
            "window_shapes": ((28.0, 28.0), (40.0, 50.0), (60.0, 60.0)),
            "head_kernel": 3,
            "head_dilation": 1,
            "class_widths": (64,),
            "box_widths": (64,),
        },
    ),
    "sliding_window in crops, with merging": (
        "sliding_window",
        {
            "suppression": "merging",
            "trunk": "resnet10t",
            "stride": 8,
            "evaluation": "crops",
            "window_side": 28,
            "window_shapes": ((54.0, 64.0),),
            "head_kernel": 1,
            "head_dilation": 1,
            "class_widths": (64,),
            "box_widths": (64,),
        },
    ),
    "yolov3": (
        "yolov3",
        {
            "trunk": "resnet10t",
            "widths": (32, 32, 32),
            "depths": (1, 1, 1),
            "anchors": (
                (10.0, 10.0),
                (15.0, 20.0),
                (25.0, 18.0),
                (25.0, 40.0),
                (40.0, 30.0),
                (45.0, 55.0),
                (60.0, 45.0),
                (60.0, 80.0),
                (90.0, 80.0),
            ),
            "frame": LETTERBOX,
        },
    ),
    "yolov3 of darknet's weights": (
        "yolov3",
        {
            "trunk": "darknet7",
            "strides": (16, 32),
            "widths": (32, 32),
            "depths": (0, 1),
            "anchors": ((10.0, 10.0), (20.0, 25.0), (30.0, 40.0), (45.0, 55.0), (60.0, 70.0), (90.0, 80.0)),
            "level_anchors": ((1, 2, 3), (3, 4, 5)),
            "frame": LETTERBOX,
        },
    ),
    "cornernet": ("cornernet", {"trunk": "resnet10t", "channels": 64, "pooled_channels": 32}),
    "cornernet of hourglasses": ("cornernet", {**HOURGLASSES, "num_stacks": 2}),
    "cornernet with mirror images": ("cornernet", {**HOURGLASSES, "num_stacks": 1, "flip_test": True}),
}


# name -> arguments that make it smaller still, for tests that write checkpoints often or compute in float64.
NARROW: dict[str, dict[str, object]] = {
    "faster_rcnn": {"channels": 32, "head_width": 32},
    "fast_rcnn": {"channels": 32, "head_width": 32, "proposals": replace(SEARCH, limit=30)},
    "retinanet": {"channels": 32},
    "rcnn": {"proposals": replace(SEARCH, limit=30)},
    "rcnn of the paper": {"proposals": replace(SEARCH, limit=30)},
}
