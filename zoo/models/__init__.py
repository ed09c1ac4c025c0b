"""Every detector of the zoo, by the name that configs, reports and checkpoints use."""

from zoo.detector import Detector
from zoo.models.retinanet import RetinaNet

MODELS: dict[str, type[Detector]] = {"retinanet": RetinaNet}
