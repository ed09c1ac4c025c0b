"""What to do with detections in Python: draw them, or convert them for another package."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from PIL import Image as PillowImage

from zoo.errors import InputError
from zoo.io.inputs import ImageInput, as_image
from zoo.ops.paste import image_masks
from zoo.report.pictures.draw import draw_prediction
from zoo.types import Prediction


def draw(image: ImageInput, found: Prediction, class_names: Sequence[str]) -> PillowImage.Image:
    """The image with boxes, masks, class names and scores; small images are enlarged, so that names are readable.

    Args:
        image: file, PIL image, array or tensor (see `zoo.io.inputs.as_image`).
        found: its detections.
        class_names: of the detector.
    """
    drawn = draw_prediction(as_image(image), found, class_names)
    return PillowImage.fromarray(drawn.permute(1, 2, 0).contiguous().numpy())


def to_supervision(found: Prediction, class_names: Sequence[str], size: tuple[int, int] | None = None) -> Any:
    """The detections as `supervision.Detections`, with class names in `data["class_name"]`.

    Args:
        found: the detections of an image.
        class_names: of the detector.
        size: (height, width) of the image; masks, which need it, are left out without.

    Raises:
        InputError: the package supervision is not installed.
    """
    try:
        supervision = import_module("supervision")
    except ImportError as error:
        raise InputError("the package supervision is missing: pip install supervision") from error
    labels = found["labels"].cpu().numpy()
    masks = None if size is None else image_masks(found, *size)
    return supervision.Detections(
        xyxy=found["boxes"].cpu().numpy(),
        confidence=found["scores"].cpu().numpy(),
        class_id=labels,
        mask=None if masks is None else masks.cpu().numpy(),
        data={"class_name": [class_names[label] for label in labels]},
    )
