"""Matching of file names that other computers wrote: backslashes, URLs, folders of another machine."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

Item = TypeVar("Item", bound=PurePath)


def name_variants(name: str) -> list[PurePosixPath]:
    """A listed name, with separators of POSIX, as it is and decoded from a URL; without drive, host and query."""
    variants = [name.replace("\\", "/")]
    if "%" in name or "://" in name:
        parts = urlsplit(variants[0])
        variants.append(unquote(parts.path if parts.scheme in ("http", "https", "file", "s3", "gs") else variants[0]))
    return [PurePosixPath(variant) for variant in dict.fromkeys(variants)]


def best_matches(name: str, by_base_name: Mapping[str, Sequence[Item]]) -> list[Item]:
    """Paths with the base name of `name` that have the longest common end with it; several if they are equally long."""
    for variant in name_variants(name):
        candidates = by_base_name.get(variant.name, [])
        if candidates:
            lengths = [_common_end(variant.parts, path.parts) for path in candidates]
            return [path for path, length in zip(candidates, lengths, strict=True) if length == max(lengths)]
    return []


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    length = 0
    for ours, theirs in zip(reversed(one), reversed(other), strict=False):
        if ours != theirs:
            break
        length += 1
    return length
