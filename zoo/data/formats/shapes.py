"""Synthetic data set of shapes on cluttered backgrounds, drawn in memory from a seed.

Its purpose is to compare detectors: detectors learn it in a minute or two on a CPU, but their AP is then still well
below 1. Six classes differ by outline, at any angle; each tends to a hue that alone does not identify it. Sizes differ
by a factor of ten; objects occlude each other; textures carry no information; backgrounds have gradients, noise and
lines; distractors (ovals, bars, open arcs) belong to no class; and some images have no object.

Masks are drawn at four times the resolution of the image, which gives soft edges and boxes on quarter pixels: exact in
f32, tight around the visible part. An object is drawn only if at least `_MIN_VISIBLE` of it is visible.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from zoo.data.masks import Masks, encode_runs
from zoo.data.source import Source
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.types import Image

SHAPE_CLASSES = ("disc", "ring", "square", "triangle", "cross", "star")

_SCALE = 4  # mask pixels per image pixel
_MIN_VISIBLE = 0.45  # fraction of an object
_SMALLEST, _LARGEST = 8.0, 90.0  # diameter in pixels
_WIDTHS, _HEIGHTS = (128, 160), (112, 136)  # pixels
_EMPTY = 0.05  # fraction of images without objects
_MEAN_OBJECTS = 4.0
_DISTRACTORS = ("oval", "bar", "arc")
_HUE_SPREAD = 0.05  # standard deviation of a class's hue, in turns; adjacent classes are 1/6 apart

Polygon = list[tuple[float, float]]


@dataclass(frozen=True)
class Shapes(Source):
    """Synthetic images: image i depends on `seed` and i only, so a smaller set is the start of a larger one.

    Args:
        num_images: number of images.
        seed: use a different seed for each split.
    """

    num_images: int = 1000
    seed: int = 0

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        """See `Source.read`; there are no files and no bad boxes. Masks have the pixels that are half covered."""
        if self.num_images < 1 or self.seed < 0:
            raise InputError(f"shapes need num_images >= 1 and seed >= 0, got {self.num_images} and {self.seed}")
        return _read(self.num_images, self.seed, with_masks)

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`; the image is drawn each time, which takes 1 to 2 ms."""
        # image ids are 1..N, and `AnnotationTable.select` keeps them
        return torch.from_numpy(draw(self.seed, int(table.image_ids[index]) - 1)).permute(2, 0, 1)


@dataclass(frozen=True)
class _Part:
    """Visible mask of one object or distractor."""

    label: int  # -1 for distractors
    top: int  # in mask pixels, a multiple of _SCALE
    left: int
    mask: NDArray[np.bool_]
    box: tuple[float, float, float, float]  # in image pixels


@dataclass(frozen=True)
class _Scene:
    width: int
    height: int
    parts: list[_Part]  # masks do not overlap


@cache
def _read(num_images: int, seed: int, with_masks: bool) -> AnnotationTable:
    scenes = [_scene(np.random.default_rng([seed, index, 0])) for index in range(num_images)]
    objects = [(index, part) for index, scene in enumerate(scenes) for part in scene.parts if part.label >= 0]
    return AnnotationTable.from_rows(
        classes=SHAPE_CLASSES,
        image_ids=np.arange(1, num_images + 1),
        widths=np.array([scene.width for scene in scenes]),
        heights=np.array([scene.height for scene in scenes]),
        file_names=[f"shapes_{seed}_{index + 1:06d}.png" for index in range(num_images)],
        image_index=np.array([index for index, _ in objects], np.int64),
        boxes=np.array([part.box for _, part in objects], np.float64).reshape(-1, 4),
        labels=np.array([part.label for _, part in objects], np.int64),
        masks=Masks.pack(_runs(scenes[index], part) for index, part in objects) if with_masks else None,
    )


def _runs(scene: _Scene, part: _Part) -> bytes:
    pixels = np.zeros((scene.height, scene.width), bool)
    covered = _shrink(part.mask) >= 0.5
    window = pixels[part.top // _SCALE :, part.left // _SCALE :][: covered.shape[0], : covered.shape[1]]
    window |= covered[: window.shape[0], : window.shape[1]]
    return encode_runs(pixels)


def draw(seed: int, index: int) -> NDArray[np.uint8]:
    """Draws image `index` of the set with this seed: uint8 [H, W, 3]."""
    scene = _scene(np.random.default_rng([seed, index, 0]))
    rng = np.random.default_rng([seed, index, 1])  # separate generator, so that appearance does not change the boxes
    canvas = _background(rng, scene.width, scene.height)
    for part in scene.parts:
        _paint(rng, canvas, part)
    canvas += rng.normal(0, rng.uniform(2, 9), canvas.shape[:2]).astype(np.float32)[:, :, None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _scene(rng: Generator) -> _Scene:
    """Draws the masks of a scene, front to back: each takes pixels that are still free."""
    width, height = int(rng.integers(*_WIDTHS, endpoint=True)), int(rng.integers(*_HEIGHTS, endpoint=True))
    taken = np.zeros((height * _SCALE, width * _SCALE), bool)
    empty = rng.random() < _EMPTY
    labels = [] if empty else rng.integers(0, len(SHAPE_CLASSES), 1 + min(rng.poisson(_MEAN_OBJECTS - 1), 10)).tolist()
    labels += [-1] * int(rng.integers(0, 3))
    rng.shuffle(labels)
    parts = [part for label in labels if (part := _place(rng, taken, label)) is not None]
    if not empty and not any(part.label >= 0 for part in parts):
        # distractors left no space for an object: draw one object without them
        taken[:] = False
        parts = [part] if (part := _place(rng, taken, 0)) is not None else []
    return _Scene(width, height, parts)


def _place(rng: Generator, taken: NDArray[np.bool_], label: int) -> _Part | None:
    """Places one object or distractor where enough of it is visible and marks its pixels; None after three attempts."""
    name = SHAPE_CLASSES[label] if label >= 0 else _DISTRACTORS[rng.integers(len(_DISTRACTORS))]
    for _ in range(3):
        # large sizes are more frequent: a tenth is below 14 pixels, half above 37
        size = _SMALLEST * (_LARGEST / _SMALLEST) ** (rng.random() ** 0.65)
        mask = _outline(rng, name, size * _SCALE)
        rows, columns = taken.shape
        # the centre is in the image; a quarter of the mask may be outside
        top = int(rng.integers(-mask.shape[0] // 4, max(1, rows - mask.shape[0] * 3 // 4)))
        left = int(rng.integers(-mask.shape[1] // 4, max(1, columns - mask.shape[1] * 3 // 4)))
        top, left = top // _SCALE * _SCALE, left // _SCALE * _SCALE
        full_area = np.count_nonzero(mask)
        inside = mask[max(0, -top) : rows - top, max(0, -left) : columns - left]
        top, left = max(0, top), max(0, left)
        window = taken[top : top + inside.shape[0], left : left + inside.shape[1]]
        visible = inside & ~window
        if full_area and np.count_nonzero(visible) >= _MIN_VISIBLE * full_area:
            window |= visible
            return _Part(label, top, left, visible, _tight_box(visible, top, left))
    return None


def _tight_box(mask: NDArray[np.bool_], top: int, left: int) -> tuple[float, float, float, float]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        float(left + xs[0]) / _SCALE,
        float(top + ys[0]) / _SCALE,
        float(left + xs[-1] + 1) / _SCALE,
        float(top + ys[-1] + 1) / _SCALE,
    )


def _outline(rng: Generator, name: str, size: float) -> NDArray[np.bool_]:
    """Full mask of a shape of diameter `size` (mask pixels) at a random angle."""
    radius = size / 2
    side = math.ceil(size / _SCALE + 1) * _SCALE
    image = PILImage.new("1", (side, side))
    pen = ImageDraw.Draw(image)
    middle = side / 2
    angle = rng.uniform(0, 2 * math.pi)
    box = (middle - radius, middle - radius, middle + radius, middle + radius)
    if name == "disc":
        pen.ellipse(box, fill=1)
    elif name == "ring":
        pen.ellipse(box, fill=1)
        hole = radius * rng.uniform(0.45, 0.65)
        pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    elif name == "arc":
        start = math.degrees(angle)
        pen.arc(box, start, start + rng.uniform(120, 230), fill=1, width=max(_SCALE, round(radius * 0.4)))
    else:
        pen.polygon([(middle + radius * x, middle + radius * y) for x, y in _turn(_corners(rng, name), angle)], fill=1)
    return np.asarray(image)


def _corners(rng: Generator, name: str) -> Polygon:
    """Corners of a shape inscribed in the unit circle, at angle 0."""
    match name:
        case "square":
            return _on_circle(4)
        case "triangle":
            return _on_circle(3)
        case "star":
            inner = rng.uniform(0.4, 0.5)
            return [point for pair in zip(_on_circle(5), _on_circle(5, inner, 0.5), strict=True) for point in pair]
        case "cross":
            arm = rng.uniform(0.26, 0.36)
            reach = math.sqrt(1 - arm * arm)
            quarter = [(reach, -arm), (reach, arm), (arm, arm)]
            return [point for turn in range(4) for point in _turn(quarter, turn * math.pi / 2)]
        case "oval":
            flat = rng.uniform(0.35, 0.6)
            return [(x, y * flat) for x, y in _on_circle(32)]
        case "bar":
            flat = rng.uniform(0.2, 0.5)
            return [(x * math.sqrt(1 - flat * flat), y * flat) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    raise ValueError(f"no such shape: {name}")


def _on_circle(count: int, radius: float = 1, shift: float = 0) -> Polygon:
    """Equally spaced points on a circle; `shift` is in steps."""
    angles = [(number + shift) * 2 * math.pi / count for number in range(count)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _turn(points: Polygon, angle: float) -> Polygon:
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _background(rng: Generator, width: int, height: int) -> NDArray[np.float32]:
    """Background with a gradient, blotches, thin lines and small rectangles: f32 [H, W, 3]."""
    # greyish, unlike the objects
    corners = rng.uniform(60, 190) + rng.uniform(-25, 25, 3) + rng.uniform(-20, 20, (2, 2, 3))
    blotches = rng.normal(0, rng.uniform(3, 9), (7, 8, 3))
    coarse = np.asarray(
        [
            _enlarge(corners[:, :, channel], width, height) + _enlarge(blotches[:, :, channel], width, height)
            for channel in range(3)
        ]
    )
    canvas = PILImage.fromarray(np.clip(coarse.transpose(1, 2, 0), 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 9))):
        ends = rng.uniform(0, 1, 4) * (width, height, width, height)
        pen.line(ends.tolist(), fill=_colour(rng), width=int(rng.integers(1, 4)))
    for x, y in rng.uniform(0, 1, (int(rng.integers(0, 13)), 2)) * (width, height):
        pen.rectangle((x, y, x + rng.integers(1, 5), y + rng.integers(1, 5)), fill=_colour(rng))
    return np.asarray(canvas, np.float32)


def _enlarge(grid: NDArray[np.float64], width: int, height: int) -> NDArray[np.float32]:
    return np.asarray(PILImage.fromarray(grid.astype(np.float32)).resize((width, height), PILImage.Resampling.BILINEAR))


def _object_colour(rng: Generator, label: int) -> NDArray[np.float32]:
    """Random colour near the hue of the class; any hue and less saturation for distractors."""
    hue = (label / len(SHAPE_CLASSES) + rng.normal(0, _HUE_SPREAD)) % 1 if label >= 0 else rng.random()
    saturation = rng.uniform(0.5, 1) if label >= 0 else rng.uniform(0.1, 0.6)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.5, 1))
    return 255 * np.array([red, green, blue], np.float32)


def _colour(rng: Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(20, 236, 3).tolist()
    return red, green, blue


def _paint(rng: Generator, canvas: NDArray[np.float32], part: _Part) -> None:
    """Paints a part with a random texture on the canvas, with soft edges."""
    alpha = _shrink(part.mask)[:, :, None]
    top, left = part.top // _SCALE, part.left // _SCALE
    window = canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    alpha = alpha[: window.shape[0], : window.shape[1]]
    # differs from the background by at least 75 in the sum of the channels, so that every object is visible
    below = window.mean((0, 1))
    colour = _object_colour(rng, part.label)
    while np.abs(colour - below).sum() < 75:
        colour = _object_colour(rng, part.label)
    texture = colour + _pattern(rng, alpha.shape[0], alpha.shape[1])[:, :, None] * rng.uniform(10, 45)
    window += alpha * (texture - window)


def _shrink(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fraction of each image pixel that a mask covers: f32 in 0..1."""
    rows, columns = (length + -length % _SCALE for length in mask.shape)
    padded = np.zeros((rows, columns), np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    # 4x4 mask pixels are one image pixel. Adding slices is much faster than a mean over short axes.
    lines = padded[:, 0::_SCALE] + padded[:, 1::_SCALE] + padded[:, 2::_SCALE] + padded[:, 3::_SCALE]
    cells = lines[0::_SCALE] + lines[1::_SCALE] + lines[2::_SCALE] + lines[3::_SCALE]
    return cells.astype(np.float32) / _SCALE**2


def _pattern(rng: Generator, height: int, width: int) -> NDArray[np.float32]:
    """Random texture (plain, gradient, stripes or noise): f32 [height, width] in about -1..1."""
    kind = rng.integers(4)
    if kind == 0:
        return np.zeros((height, width), np.float32)
    if kind == 3:
        return rng.uniform(-1, 1, (height, width)).astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = (
        math.cos(angle) * np.arange(width, dtype=np.float32)
        + math.sin(angle) * np.arange(height, dtype=np.float32)[:, None]
    )
    if kind == 1:
        return np.asarray(along / max(1.0, float(np.abs(along).max())), np.float32)
    period = float(rng.uniform(3, 8))  # pixels
    return np.asarray(np.sign(np.sin(along * (2 * math.pi / period))), np.float32)
