"""Draw boxes and masks on an image; class colours, which are the same in every picture."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image as PillowImage
from PIL import ImageColor, ImageDraw, ImageFont
from torch import Tensor

from zoo.ops.paste import image_masks
from zoo.types import Image, Prediction

# Okabe and Ito's palette ("Color Universal Design", 2008), distinguishable in all common forms of colour blindness;
# the first colours, which most data sets use, are those most visible on photographs.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")

_READABLE_SIDE = 480  # pixels; longer side of an image on which a label of 12 pixels is readable
_MASK_OPACITY = 0.45
_CROWDED = 20  # boxes; above this, lines are thin and labels wider than their box are left out


def class_color(label: int) -> str:
    """Colour of a class as `#rrggbb`.

    The first seven classes have the colours of Okabe and Ito; later ones step around the hues by the golden ratio. No
    palette keeps dozens of colours distinguishable, so pictures also name the class.
    """
    if label < len(_PALETTE):
        return _PALETTE[label]
    step = label - len(_PALETTE)
    red, green, blue = colorsys.hls_to_rgb((0.08 + 0.618034 * step) % 1.0, (0.42, 0.62, 0.30)[step % 3], 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def text_color(background: str) -> str:
    """Black or white, whichever has more contrast (WCAG relative luminance) to a `#rrggbb` background."""
    channels = [int(background[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # equal contrast to both at 0.179


def draw_boxes(
    image: Image,
    boxes: Float[Tensor, "K 4"],
    labels: Int64[Tensor, " K"],
    class_names: Sequence[str],
    scores: Float[Tensor, " K"] | None = None,
    masks: Bool[Tensor, "K H W"] | None = None,
) -> Image:
    """Draw boxes with class colours, names and scores, and masks.

    Small images are enlarged by an integer factor first, so that labels are readable.

    Args:
        image: uint8 [3, H, W]; not modified.
        boxes: xyxy edges in pixels of `image`. Earlier boxes are drawn on top (predictions are sorted by score).
        labels: class of each box, an index into `class_names`.
        class_names: names of all classes.
        scores: 0..1, written after the class name; None for ground truth.
        masks: of the boxes; their pixels are tinted in the class colour.

    Returns:
        uint8 [3, H * s, W * s], s an integer, 1 where the longer side has 480 pixels or more.
    """
    height, width = image.shape[-2:]
    scale = max(1, -(-_READABLE_SIDE // max(height, width)))
    pixels = np.array(image.permute(1, 2, 0).cpu().numpy())
    if masks is not None:
        _tint(pixels, masks.cpu().numpy(), labels.tolist())
    canvas = PillowImage.fromarray(pixels)
    if scale > 1:
        canvas = canvas.resize((width * scale, height * scale), PillowImage.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    crowded = len(boxes) > _CROWDED
    longer = max(canvas.size)
    line = max(1, round(longer / (480 if crowded else 270)))
    font = ImageFont.load_default(max(11, round(longer / (54 if crowded else 44))))

    edges = (boxes.detach().cpu().double() * scale).round().long().tolist()
    tags = [class_names[label] for label in labels.tolist()]
    colors = [class_color(label) for label in labels.tolist()]
    if scores is not None:
        tags = [f"{tag} {format_score(score)}" for tag, score in zip(tags, scores.tolist(), strict=True)]
    for (x1, y1, x2, y2), color in zip(reversed(edges), reversed(colors), strict=True):
        # Pillow's corners are inclusive pixel indices; ours are edges between pixels.
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
    for (x1, y1, x2, _), color, tag in zip(reversed(edges), reversed(colors), reversed(tags), strict=True):
        if crowded and draw.textlength(tag, font=font) > x2 - x1:
            continue
        _draw_tag(draw, (x1, y1), tag, color, font, canvas.size)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def draw_prediction(image: Image, found: Prediction, class_names: Sequence[str]) -> Image:
    """Draw the detections of an image, with masks where they have any; see `draw_boxes`."""
    masks = image_masks(found, *image.shape[-2:])
    return draw_boxes(image, found["boxes"], found["labels"], class_names, found["scores"], masks)


def _tint(pixels: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "K H W"], labels: list[int]) -> None:
    """Tint the pixels of masks in place, the last mask first, so that earlier ones lie on top."""
    for mask, label in zip(masks[::-1], reversed(labels), strict=True):
        color = np.array(ImageColor.getrgb(class_color(label)))
        pixels[mask] = (pixels[mask] * (1 - _MASK_OPACITY) + color * _MASK_OPACITY).astype(np.uint8)


def format_score(score: float) -> str:
    """A score with two decimals, or two digits where it is below 0.01, without the leading zero: `.93`, `.0024`."""
    text = f"{score:.2f}" if abs(score) >= 0.01 or score == 0 else f"{score:.2g}"
    return text[1:] if text.startswith("0") else text


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    tag: str,
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Draw a label above its box, or just inside the box if it would leave the image."""
    _, top, _, bottom = draw.textbbox((0, 0), "Ag", font=font)  # one height for all tags
    margin = max(1, (bottom - top) // 6)
    width = int(draw.textlength(tag, font=font)) + 2 * margin
    height = int(bottom - top) + 2 * margin
    x = max(0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else max(0, corner[1])
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    draw.text((x + margin, y + margin - top), tag, fill=text_color(color), font=font)
