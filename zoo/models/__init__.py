"""All detectors by their keys."""

from zoo.detector import Detector
from zoo.models.cornernet import CornerNet
from zoo.models.fast_rcnn import FastRCNN
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.mask_rcnn import MaskRCNN
from zoo.models.rcnn import RCNN
from zoo.models.retinanet import RetinaNet
from zoo.models.sliding_window import SlidingWindow
from zoo.models.ssd import SSD
from zoo.models.yolov1 import YOLOv1
from zoo.models.yolov3 import YOLOv3

MODELS: dict[str, type[Detector]] = {
    "sliding_window": SlidingWindow,
    "rcnn": RCNN,
    "fast_rcnn": FastRCNN,
    "faster_rcnn": FasterRCNN,
    "yolov1": YOLOv1,
    "ssd": SSD,
    "retinanet": RetinaNet,
    "yolov3": YOLOv3,
    "mask_rcnn": MaskRCNN,
    "cornernet": CornerNet,
}
