"""Decode image files to upright uint8 RGB tensors, and read their sizes.

JPEGs are decoded by libjpeg-turbo (simplejpeg), which gives the same pixels as Pillow in three quarters of the time.
Pillow decodes everything else: EXIF rotation, CMYK, palettes, 16 bit, other formats, and files that libjpeg warns
about. Tensors have shape [3, H, W] and are channels-last in memory.
"""

import io
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PILImage

from zoo.errors import InputError
from zoo.types import Image

# EXIF orientations that swap width and height
_QUARTER_TURNS = frozenset({5, 6, 7, 8})
# Exceptions that Pillow raises for truncated or corrupt files
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, PILImage.DecompressionBombError)
_NOT_AN_IMAGE = "not an image, or a format that Pillow cannot read; remove or replace it"


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Image:
    """Decodes an image file.

    Args:
        path: file of any format that Pillow reads.
        size: (width, height) in the annotations, or None. Annotations normally refer to the upright image. Where they
            ignore the EXIF orientation, width and height are swapped, and the image is then returned without applying
            the orientation. (A rotation by 180 degrees cannot be detected this way.)

    Returns:
        uint8 [3, H, W].

    Raises:
        InputError: the file is missing, truncated, not an image, or of another size.
    """
    data = _read(path)
    image = _decode(data, path, upright=True)
    if size is None or size == (image.shape[2], image.shape[1]):
        return image
    if size == (image.shape[1], image.shape[2]):
        raw = _decode(data, path, upright=False)
        if size == (raw.shape[2], raw.shape[1]):
            return raw
    actual, annotated = f"{image.shape[2]}x{image.shape[1]}", f"{size[0]}x{size[1]}"
    raise InputError(f"image is {actual} but its annotation says {annotated}; correct the annotation", file=path)


def load_grey(path: str | Path) -> NDArray[np.uint8]:
    """Luma [H, W] of an image, upright; of a JPEG without decoding its colours: theirs but for rounding and clipping.

    Raises:
        InputError: the file is missing, truncated or not an image.
    """
    data = _read(path)
    with suppress(*DECODE_ERRORS):  # whether it is damaged is decided by the complete decoder
        if _is_jpeg(data, upright=True) and simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray"):
            return np.asarray(simplejpeg.decode_jpeg(data, colorspace="GRAY")[..., 0], np.uint8)
    pixels = _decode(data, path, upright=True).permute(1, 2, 0).contiguous().numpy()
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"image cannot be read: {error.strerror or error}", file=path) from error


def _is_jpeg(data: bytes, upright: bool) -> bool:
    """Whether an image is a JPEG that needs no rotation."""
    return data[:2] == b"\xff\xd8" and not (upright and _has_metadata(data) and _orientation(data) != 1)


def _decode(data: bytes, path: str | Path, upright: bool) -> Image:
    try:
        if _is_jpeg(data, upright):
            return _decode_jpeg(data)
        with PILImage.open(io.BytesIO(data)) as image:
            deep = _read_deep_colour(image, data)
            if deep is not None:
                return torch.from_numpy(_keep_eight_bits(deep)).permute(2, 0, 1)
            oriented = ImageOps.exif_transpose(image) if upright else image
            return torch.from_numpy(to_rgb(oriented)).permute(2, 0, 1)
    except UnidentifiedImageError:
        raise InputError(_NOT_AN_IMAGE, file=path) from None
    except DECODE_ERRORS as error:
        raise InputError(f"image is damaged ({error}); remove or replace it", file=path) from error


def _decode_jpeg(data: bytes) -> Image:
    """Decodes a JPEG without applying the EXIF orientation."""
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        # CMYK, or a file that libjpeg warns about
        with PILImage.open(io.BytesIO(data)) as image:
            pixels = to_rgb(image)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _has_metadata(jpeg: bytes) -> bool:
    """Whether a JPEG has an APP1 segment (EXIF or XMP) before its pixels; much faster than opening it with Pillow."""
    offset = 2
    while jpeg[offset : offset + 1] == b"\xff":
        marker = jpeg[offset + 1 : offset + 2]
        if marker == b"\xe1":
            return True
        if marker == b"\xda":  # start of scan
            return False
        offset += 2 + int.from_bytes(jpeg[offset + 2 : offset + 4], "big")
    return True  # not a valid sequence of segments: let Pillow read the orientation


def _orientation(data: bytes) -> int:
    with PILImage.open(io.BytesIO(data)) as image:
        return orientation(image)


def orientation(image: PILImage.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where the tag is absent or invalid, as in Pillow."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(value) if value in range(2, 9) else 1


def to_rgb(image: PILImage.Image) -> NDArray[np.uint8]:
    """Converts a Pillow image of any mode to uint8 [H, W, 3].

    Grey becomes three equal channels, palettes are looked up, CMYK is converted, alpha is dropped without blending,
    16-bit grey keeps 8 bits (see `bits_in_use`), and 32-bit integers and floats are scaled from their own range to
    0..255.
    """
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        grey = np.asarray(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and grey.min() >= 0 and grey.max() < 1 << 16):
            grey = _keep_eight_bits(grey)
        else:
            low, high = float(grey.min()), float(grey.max())
            grey = ((grey - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def bits_in_use(pixels: NDArray[np.integer]) -> int:
    """Bits of 16-bit pixels that are in use: 8, 12 or 16, the fewest that hold the brightest pixel.

    Cameras and scanners of 12 bits store them in 16 without scaling, so that the 8 highest bits would hold 16 levels.
    """
    highest = int(pixels.max(initial=0))
    return next(bits for bits in (8, 12, 16) if highest < 1 << bits)


def deep_pixels(path: str | Path) -> NDArray[np.integer] | None:
    """Pixels of an image of more than 8 bits a channel, as the file has them; None for other images."""
    data = Path(path).read_bytes()
    with PILImage.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):
            return np.asarray(image)
        return _read_deep_colour(image, data)


def _keep_eight_bits(pixels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The 8 highest of the bits in use."""
    return (pixels.astype(np.uint32) >> (bits_in_use(pixels) - 8)).astype(np.uint8)


def _read_deep_colour(image: PILImage.Image, data: bytes) -> NDArray[np.uint16] | None:
    """RGB [H, W, 3] of an image with 16 bits a colour, of which Pillow keeps the 8 highest; None for others.

    Images with an EXIF rotation and PPM files are left to Pillow.
    """
    tiles = str(getattr(image, "tile", ""))  # names the encoding of the pixels, such as RGB;16B
    if image.mode not in ("RGB", "RGBA") or ";16" not in tiles or orientation(image) != 1:
        return None
    image.load()  # raises an error for a truncated file, which OpenCV reads in part
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.array(pixels[:, :, 2::-1], np.uint16) if pixels is not None and pixels.dtype == np.uint16 else None


def upright_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image after EXIF rotation, from the header of the file.

    Raises:
        InputError: the file is missing or not an image.
    """
    try:
        with PILImage.open(path) as image:
            width, height = image.size
            is_swapped = orientation(image) in _QUARTER_TURNS
    except FileNotFoundError:
        raise InputError("image file is missing", file=path) from None
    except UnidentifiedImageError:
        raise InputError(_NOT_AN_IMAGE, file=path) from None
    except DECODE_ERRORS as error:
        raise InputError(f"image is damaged ({error}); remove or replace it", file=path) from error
    return (height, width) if is_swapped else (width, height)
