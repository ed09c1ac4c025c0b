"""Decode COCO json files to typed records.

Only the fields for detection are decoded: msgspec skips polygons without creating Python objects. Files that its typed
decoder refuses are decoded with Python's json, and numbers that are written as text or with a decimal point are read as
numbers.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from zoo.data.formats.raw import BrokenRecordError, OnError
from zoo.errors import InputError

# ranges of the integer columns of a table
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

ABSENT = msgspec.Raw()
"""Value of fields that are decoded only where needed, if they are absent."""

_GZIP = b"\x1f\x8b"
# Fields that are kept as json text, since few programs write them and their types differ.
_RAW_FIELDS = ("attributes", "segmentation")
_INTEGER_FIELDS = ("id", "image_id", "category_id", "width", "height", "iscrowd", "difficult")
_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_EXACT = 2**53  # every integer up to this one is exact as a float


class Category(msgspec.Struct, gc=False):
    """Entry of `categories`."""

    id: _Int64
    name: str
    supercategory: Any = None


class ImageRecord(msgspec.Struct, gc=False):
    """Entry of `images`; sides are None or 0 where the file does not give them."""

    id: _Int64
    file_name: str
    width: _Int32 | None = None
    height: _Int32 | None = None


class Annotation(msgspec.Struct, gc=False):
    """Entry of `annotations`."""

    id: _Int64
    image_id: _Int64
    category_id: _Int64
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = None
    difficult: int | bool | None = None  # not in COCO; `write_coco` stores VOC's flag here
    attributes: msgspec.Raw = ABSENT  # of CVAT


class AnnotationWithPolygon(Annotation, gc=False):
    """Entry of `annotations` with its polygons."""

    segmentation: msgspec.Raw = ABSENT


Record = TypeVar("Record", bound=msgspec.Struct)


class File(msgspec.Struct, Generic[Record], gc=False):
    """Content of a COCO json."""

    images: list[ImageRecord]
    annotations: list[Record]
    categories: list[Category]


def read_bytes(path: str | Path) -> bytes:
    """Content of an annotation file, decompressed where it is a gzip file.

    Raises:
        InputError: the file is missing, cannot be read, or is a damaged gzip file.
    """
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP) else data
    except FileNotFoundError:
        raise InputError("annotation file is missing", file=path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"gzip file is damaged: {error}; is the file complete?", file=path) from None
    except OSError as error:
        raise InputError(f"annotation file cannot be read: {error.strerror or error}", file=path) from error


def decode(path: str | Path, on_error: OnError, annotation: type[Record]) -> tuple[File[Record], tuple[str, ...]]:
    """Records of a COCO json, and notes on how unusual values were read.

    Args:
        path: json file, or a gzip file of one.
        on_error: called with the error for each record with missing or invalid fields; the record is then skipped.
        annotation: type of the entries of `annotations`.

    Raises:
        InputError: the file is missing, not valid json, or without the lists `images`, `annotations`, `categories`.
    """
    data = read_bytes(path)
    try:
        return msgspec.json.decode(data, type=File[annotation]), ()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Slower, but reports the line, and accepts NaN, which json.dump writes although it is not valid json.
        return _decode_slowly(data, path, on_error, annotation)


def _decode_slowly(
    data: bytes, path: str | Path, on_error: OnError, annotation: type[Record]
) -> tuple[File[Record], tuple[str, ...]]:
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"json does not parse: {error.msg}; is the file complete?", path, place) from None
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
        raise InputError(f"json does not parse: {error.reason}; write it as UTF-8", path, place) from None
    except ValueError as error:  # an integer with thousands of digits
        raise InputError(f"json does not parse: {error}", path) from None
    except RecursionError:
        raise InputError("json does not parse: lists are nested too deeply", path) from None
    if not isinstance(content, dict):
        raise InputError("expected an object with `images`, `annotations` and `categories`", path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"expected a list `{key}`; give a file of detection annotations", path)
    numbers = _Numbers()
    file = File(
        images=_convert(content["images"], ImageRecord, "images", path, on_error, numbers),
        annotations=_convert(content["annotations"], annotation, "annotations", path, on_error, numbers),
        categories=_convert(content["categories"], Category, "categories", path, on_error, numbers),
    )
    return file, numbers.notes()


class _Numbers:
    """Converts numbers that are written as text or with a decimal point, and counts them."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._decimals: list[str] = []

    def integer(self, value: object, place: str) -> object:
        """An integer for `1.0`, "1" and "1.0"; any other value unchanged."""
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()) and len(value) < 32:
            self._texts.append(f"{value!r} in {place}")
            return int(value.partition(".")[0])
        if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
            self._decimals.append(f"{value!r} in {place}")
            return int(value)
        return value

    def real(self, value: object, place: str) -> object:
        """A float for a number written as text; any other value unchanged."""
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            self._texts.append(f"{value!r} in {place}")
            return float(value)
        return value

    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind of conversion that occurred."""
        kinds = ((self._texts, "numbers are written as text"), (self._decimals, "integers are written as decimals"))
        return tuple(
            f"{len(places)} {kind} and were read as numbers, the first {places[0]}" for places, kind in kinds if places
        )


def _convert(
    values: list[object],
    record: type[Record],
    key: str,
    path: str | Path,
    on_error: OnError,
    numbers: _Numbers,
) -> list[Record]:
    records = []
    fields = record.__struct_fields__
    for number, value in enumerate(values):
        place = f"{key}[{number}]"
        raw_values = {}
        if isinstance(value, dict):
            place += f" (id {value['id']!a})" if "id" in value else ""
            raw_values = {field: value[field] for field in _RAW_FIELDS if field in fields and field in value}
            value = _with_numbers({name: value[name] for name in value if name not in _RAW_FIELDS}, numbers, place)
        try:
            converted = msgspec.convert(value, record)
            # json.loads accepts lone surrogates ("\ud800"), msgspec does not
            msgspec.json.encode([getattr(converted, field) for field in fields if field not in _RAW_FIELDS])
        except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
            reason = f"{error.reason} in a text" if isinstance(error, UnicodeEncodeError) else str(error)
            if issubclass(record, Annotation):
                image_id = value.get("image_id") if isinstance(value, dict) else None
                on_error(BrokenRecordError(reason, path, place, image_id if isinstance(image_id, int) else None))
            else:
                on_error(InputError(reason, path, place))
            continue
        for field, raw_value in raw_values.items():
            setattr(converted, field, _encode(raw_value))
        records.append(converted)
    return records


def _with_numbers(value: dict[str, Any], numbers: _Numbers, place: str) -> dict[str, Any]:
    convert: tuple[tuple[Callable[[object, str], object], tuple[str, ...]], ...] = (
        (numbers.integer, _INTEGER_FIELDS),
        (numbers.real, ("area",)),
    )
    for function, names in convert:
        value |= {name: function(value[name], f"`{name}` of {place}") for name in names if name in value}
    if isinstance(value.get("bbox"), list):
        value["bbox"] = [numbers.real(edge, f"`bbox` of {place}") for edge in value["bbox"]]
    return value


def _encode(value: object) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (OverflowError, UnicodeEncodeError, RecursionError):  # not a number or a polygon
        return ABSENT
