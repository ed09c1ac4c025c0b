"""Read darknet's weights files of YOLOv1 and YOLOv3 as our state dicts."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models.yolov1 import YOLOv1
from zoo.models.yolov3 import YOLOv3
from zoo.nn.darknet import TRUNKS, Darknet, read_darknet
from zoo.weights.state import State


def from_darknet(file: str | Path | Mapping[str, Tensor], detector: Detector) -> State:
    """Parameters of a YOLOv1 or YOLOv3 from a darknet weights file; the outputs have the same order.

    The detector must have the architecture of the file's cfg. Of the released files:

        yolov1.weights (753 MB)         head: local, head_widths: [256], boxes_per_cell: 3, otherwise default
        tiny-yolov1.weights (103 MB)    trunk: darknet6, neck: [1024, 256], head: fc, head_widths: []
        yolov3.weights (248 MB)         default
        yolov3-tiny.weights (35 MB)     as configs/models/yolov3_darknet7.yaml

    YOLOv1's have VOC's 20 classes in alphabetical order, YOLOv3's COCO's 80 in the order of their ids. All take pixels
    in 0..1 (frame.mean 0, frame.std 1). Files of networks without batch norm (yolo-small, the paper's of 2015) have
    fewer values and are refused.

    Raises:
        InputError: darknet has no such detector, or the file is of another architecture.
    """
    if isinstance(file, Mapping):
        raise InputError("a state dict cannot have layout darknet; give the path of a .weights file")
    if not isinstance(detector, (YOLOv1, YOLOv3)) or not isinstance(detector.trunk, Darknet):
        raise InputError(f"darknet weights need a YOLOv1 or YOLOv3 with a trunk of darknet ({', '.join(TRUNKS)})", file)
    if isinstance(detector, YOLOv1) and detector.head.kind == "conv":
        raise InputError("darknet's YOLOv1 has no convolutional head; set head to fc or local", file)
    return read_darknet(file, detector)
