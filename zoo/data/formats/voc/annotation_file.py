"""Parse an xml file in PASCAL VOC format.

Legend:
    box  edges x1, y1, x2, y2 in pixels

VOC counts pixels from 1 and includes the last one: xmin..xmax are the edges xmin - 1 .. xmax. Tools that write decimals
write edges: in a file with a coordinate that is not an integer, nothing is subtracted.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from xml.etree import ElementTree

from zoo.data.formats.raw import OnError
from zoo.errors import InputError
from zoo.io.paths import name_variants

_MAX_PIXELS = 2**31 - 1  # sizes are stored as 32-bit integers
_COORDINATES = ("xmin", "ymin", "xmax", "ymax")
_NO = frozenset({"", "false", "no", "unspecified", "none"})
_YES = frozenset({"true", "yes"})
_Corners = tuple[Decimal, Decimal, Decimal, Decimal]


@dataclass(frozen=True)
class VocObject:
    """One <object> of an xml file."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    place: str


@dataclass(frozen=True)
class VocFile:
    """Content of an xml file.

    Args:
        size: (width, height) of the image; None where it is missing, empty or 0.
        objects: objects without missing or invalid fields.
        image_texts: texts of <filename> and <path>, which may be empty.
        has_decimals: whether a coordinate is not an integer, so that coordinates are read as edges.
        is_annotation: whether the file is an <annotation>, or cannot be parsed.
    """

    size: tuple[int, int] | None = None
    objects: tuple[VocObject, ...] = ()
    image_texts: tuple[str, ...] = ()
    has_decimals: bool = False
    is_annotation: bool = True

    @property
    def image_names(self) -> list[str]:
        """Base names of the image in <filename> and <path>; may have no suffix."""
        variants = [variant for text in self.image_texts for variant in name_variants(text.strip())]
        return list(dict.fromkeys(variant.name for variant in variants if variant.name))


def read_voc_file(path: Path, on_error: OnError) -> VocFile:
    """Parses an xml file; parts of objects (<part>) are ignored.

    Args:
        path: xml file.
        on_error: called with the error if the file cannot be read (the result is then empty), and for each object with
            missing or invalid fields (which is then skipped).
    """
    try:
        root = _parse_xml(path)
        width, height = (_number(root, f"size/{key}", path, "size", default=Decimal(0)) for key in ("width", "height"))
        if not (width.is_finite() and height.is_finite()):
            raise InputError(f"size is {width} x {height}, expected numbers", path, "size")
    except InputError as error:
        on_error(error)
        return VocFile()
    read: list[tuple[str, _Corners, bool, str]] = []
    for number, item in enumerate(root.findall("object"), start=1):
        try:
            read.append(_read_object(item, path, number))
        except InputError as error:
            on_error(error)
    has_decimals = any(value.is_finite() and value % 1 for _, corners, _, _ in read for value in corners)
    return VocFile(
        (int(width), int(height)) if width > 0 and height > 0 else None,
        tuple(VocObject(name, _edges(corners, has_decimals), flag, place) for name, corners, flag, place in read),
        (root.findtext("filename", ""), root.findtext("path", "")),
        has_decimals,
        root.tag == "annotation",
    )


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise InputError("annotation file is missing", file=path) from None
    except OSError as error:
        raise InputError(f"annotation file cannot be read: {error.strerror or error}", file=path) from error
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).partition(":")[0]
        raise InputError(f"xml does not parse: {reason}", path, f"line {line}, column {column + 1}") from None
    except (ValueError, LookupError) as error:  # an encoding that expat does not support or know
        raise InputError(f"xml does not parse: {error}; write it as UTF-8", path) from None


def _read_object(item: ElementTree.Element, path: Path, number: int) -> tuple[str, _Corners, bool, str]:
    """(class name, xmin ymin xmax ymax, difficult, place) of an <object>."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError("object has no name", path, f"object {number}")
    place = f"object {number} ({name})"
    boxes = item.findall("bndbox") or [ElementTree.Element("bndbox")]
    first, *others = (_corners(box, path, place) for box in boxes)
    if any(other != first for other in others):
        raise InputError(f"object has {len(boxes)} different <bndbox>; keep one", path, place)
    word = (item.findtext("difficult") or "").strip().lower()
    is_difficult = word in _YES or (word not in _NO and bool(_number(item, "difficult", path, place)))
    return name, first, is_difficult, place


def _corners(box: ElementTree.Element, path: Path, place: str) -> _Corners:
    xmin, ymin, xmax, ymax = (_number(box, key, path, place, "bndbox/") for key in _COORDINATES)
    return xmin, ymin, xmax, ymax


def _edges(corners: _Corners, has_decimals: bool) -> tuple[float, float, float, float]:
    xmin, ymin, xmax, ymax = corners
    # VOC reads this as a box of one pixel, but it is more likely a mouse click without a drag: give it no area.
    is_click = xmin == xmax and ymin == ymax
    if has_decimals or is_click:
        return float(xmin), float(ymin), float(xmax), float(ymax)
    return float(xmin - 1), float(ymin - 1), float(xmax), float(ymax)


def _number(
    item: ElementTree.Element, key: str, path: Path, place: str, above: str = "", default: Decimal | None = None
) -> Decimal:
    """Number in a tag; `default` where the tag is missing or empty and a default is given.

    NaN and infinity are accepted; they make a bad box.

    Args:
        item: element that contains the tag.
        key: path of the tag below `item`.
        path: xml file, for messages.
        place: object or element, for messages.
        above: path of `item`, for messages.
        default: number, or None if the tag is required.
    """
    tag = f"<{(above + key).replace('/', '><')}>"
    text = item.findtext(key)
    stripped = (text or "").strip()
    if not stripped and default is not None:
        return default
    try:
        value = Decimal(stripped)
    except InvalidOperation:
        problem = "is missing" if text is None else f"is {stripped!r}, expected a number"
        raise InputError(f"{tag} {problem}", path, place) from None
    if value.is_snan() or (value.is_finite() and value.copy_abs() > _MAX_PIXELS):
        raise InputError(f"{tag} is {value}, expected a number of pixels", path, place)
    return value
