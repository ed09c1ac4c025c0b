"""Matching of file names that other computers wrote: backslashes, URLs, folders of another machine."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

Item = TypeVar("Item", bound=PurePath)

_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio puts it before the name of an uploaded file


def name_variants(name: str) -> list[PurePosixPath]:
    """A listed name with separators of POSIX: as it is, decoded from a URL, and without the prefix of an upload.

    URLs lose host and query.
    """
    variants = [name.replace("\\", "/")]
    if "%" in name or "://" in name:
        is_url = variants[0].startswith(("http://", "https://", "file://", "s3://", "gs://"))
        path = urlsplit(variants[0]).path if is_url else variants[0]
        variants.append(unquote(path).replace("\\", "/"))
    paths = [PurePosixPath(variant) for variant in dict.fromkeys(variants)]
    prefix = _UPLOAD_PREFIX.match(paths[-1].name)
    return [*paths, paths[-1].with_name(paths[-1].name[prefix.end() :])] if prefix else paths


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
