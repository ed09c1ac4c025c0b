"""Check a data set for errors and warnings (`zoo doctor`).

Readers stop at the first error, since a run must not start with one. The doctor uses the same parsers, but collects
their errors, checks every record and every image, and lists all findings in a fixed order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.formats.parse import distinct_sources, origin, parse_splits, share_classes
from zoo.data.formats.raw import MaskError, RawSplit
from zoo.data.quality.annotation_checks import (
    balance_findings,
    box_findings,
    class_findings,
    id_findings,
    note_findings,
    parse_findings,
    polygon_findings,
)
from zoo.data.quality.findings import KINDS, Finding
from zoo.data.quality.image_checks import duplicate_findings, image_findings, object_findings, stray_findings
from zoo.data.quality.image_files import ImageFile, Progress, inspect_images, no_progress
from zoo.data.quality.mask_checks import mask_findings
from zoo.data.source import Source, find_missing
from zoo.errors import InputError


@dataclass(frozen=True, eq=False)
class Inspection:
    """Parsed content of a data set and all findings.

    Args:
        sources: source of each split.
        parsed: parsed splits with their own classes and class ids; objects are in the same order as in `raws`.
        raws: parsed splits with one list of classes, and with missing image sizes filled in.
        files: properties of each image file; None for missing files. Empty for images that are generated in memory.
        findings: sorted by split and kind.
    """

    sources: dict[str, Source]
    parsed: dict[str, RawSplit]
    raws: dict[str, RawSplit]
    files: dict[Path, ImageFile | None]
    findings: list[Finding]

    @property
    def num_errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        """Number of findings that are warnings."""
        return len(self.findings) - self.num_errors


def examine(sources: Mapping[str, Source], progress: Progress = no_progress) -> Inspection:
    """Checks all annotations and images of a data set.

    Args:
        sources: source of each split, in the order train, val, test.
        progress: progress bar over the images that are decoded.

    Raises:
        InputError: a split cannot be read at all, as with invalid json.
    """
    sources = distinct_sources(sources)
    parsed, errors = _parse(sources, with_masks=True)
    has_masks = any(raw.masks is not None and raw.masks.any() for raw in parsed.values())
    if not has_masks and not any(isinstance(error, MaskError) for of_split in errors.values() for error in of_split):
        parsed, errors = _parse(sources, with_masks=False)  # a data set of boxes: no masks to miss
    findings = [
        finding for split, raw in parsed.items() for finding in class_findings(split, raw, origin(sources[split]))
    ]
    findings += list(_differing_classes(parsed, sources))
    raws = share_classes(parsed, sources)
    findings += _similar_names_across_splits(raws, findings, sources)
    files = _inspect(raws, progress)
    raws = {split: _fill_sizes(raw, files) for split, raw in raws.items()}
    for split, raw in raws.items():
        found = [*parse_findings(split, errors[split], raw), *note_findings(split, raw, origin(sources[split]))]
        of_polygons = list(polygon_findings(split, raw, sources[split]))
        found += [*id_findings(split, raw), *box_findings(split, raw), *of_polygons]
        found += mask_findings(split, raw, {finding.row for finding in of_polygons})
        found += image_findings(split, raw, files) if raw.folders else []
        broken = {finding.image for finding in found if finding.severity == "error"}
        findings += [*found, *object_findings(split, raw, broken)]
    # a data set may have splits with files and splits that are generated in memory
    with_files = {split: raw for split, raw in raws.items() if raw.folders}
    findings += [*stray_findings(with_files), *duplicate_findings(with_files, files)]
    findings += balance_findings(raws, origin(next(iter(sources.values()))))
    with_errors = {finding.split for finding in findings if finding.severity == "error"}
    for split, raw in raws.items():
        if split not in with_errors and not len(raw.labels):
            message = f"none of the {len(raw)} images has an object" if len(raw) else "there are no images"
            findings.append(Finding("split_without_objects", split, origin(sources[split]), None, message))
    splits, kinds = ["", *raws], list(KINDS)
    findings.sort(key=lambda finding: (splits.index(finding.split), kinds.index(finding.kind)))
    return Inspection(dict(sources), parsed, raws, files, findings)


def _parse(sources: Mapping[str, Source], with_masks: bool) -> tuple[dict[str, RawSplit], dict[str, list[InputError]]]:
    errors: dict[str, list[InputError]] = {split: [] for split in sources}
    return parse_splits(sources, lambda split: errors[split].append, with_masks), errors


def _inspect(raws: Mapping[str, RawSplit], progress: Progress) -> dict[Path, ImageFile | None]:
    """Inspects each image file once, also where several splits list it."""
    paths = list(dict.fromkeys(path for raw in raws.values() if raw.folders for path in raw.paths()))
    missing = set(find_missing(paths))
    present = [path for number, path in enumerate(paths) if number not in missing]
    files: dict[Path, ImageFile | None] = dict.fromkeys(paths)
    files.update(zip(present, inspect_images(present, progress), strict=True))
    return files


def _fill_sizes(raw: RawSplit, files: Mapping[Path, ImageFile | None]) -> RawSplit:
    """Copy with the image sizes of the files where the annotations have none."""
    sizes = np.stack([raw.widths, raw.heights], axis=1)
    for index in np.flatnonzero((sizes == 0).all(1)).tolist():
        file = files.get(raw.path(index))
        sizes[index] = (0, 0) if file is None else (file.width, file.height)
    return raw.with_sizes(sizes)


def _differing_classes(raws: Mapping[str, RawSplit], sources: Mapping[str, Source]) -> Iterator[Finding]:
    """Splits whose classes differ from those of the first split; VOC splits without a list of classes are skipped."""
    first, reference = next(iter(raws.items()))
    for split, raw in raws.items():
        if getattr(sources[split], "classes", ()) is None:
            continue
        only_here, only_there = set(raw.classes) - set(reference.classes), set(reference.classes) - set(raw.classes)
        parts = [
            f"only in {name}: {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''}"
            for name, names in ((split, only_here), (first, only_there))
            if names
        ]
        same = raw.classes == reference.classes and np.array_equal(raw.class_ids, reference.class_ids)
        if parts or not same:
            detail = "; ".join(parts) or "the names are the same, but not their order or ids"
            yield Finding(
                "classes_differ", split, origin(sources[split]), None, f"classes differ from {first}: {detail}"
            )


def _similar_names_across_splits(
    raws: Mapping[str, RawSplit], known: list[Finding], sources: Mapping[str, Source]
) -> Iterator[Finding]:
    """Class names of different splits that differ only in case, spaces, `_` or `-`."""
    if any(finding.kind == "class_names_alike" for finding in known):
        return
    split, raw = next(iter(raws.items()))
    for finding in class_findings("", raw, origin(sources[split])):
        if finding.kind == "class_names_alike":
            yield finding
