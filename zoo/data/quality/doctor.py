"""Everything that is wrong with a data set.

Readers end at the first fault, since a run must not begin with one. The doctor begins with the same parsers, tells them
to go on, looks at every record and every image, and lists what it finds in a fixed order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.formats.parse import distinct_sources, origin, parse_splits, share_classes
from zoo.data.formats.raw import RawSplit
from zoo.data.quality.annotation_checks import (
    balance_findings,
    box_findings,
    class_findings,
    complaint_findings,
    id_findings,
)
from zoo.data.quality.findings import KINDS, Finding
from zoo.data.quality.image_checks import duplicate_findings, image_findings, object_findings, stray_findings
from zoo.data.quality.image_files import ImageFile, Watch, inspect_images, unwatched
from zoo.data.source import Source, find_missing
from zoo.errors import InputError


@dataclass(frozen=True, eq=False)
class Inspection:
    """A data set, looked through.

    Args:
        sources: of each split.
        parsed: what its files say, with classes and class ids of its own; objects are in the order of those in `raws`.
        raws: what its files say, with sizes filled in where they say nothing, and one list of classes.
        files: what each image file holds; None for one that is missing. Empty for images that are made in memory.
        findings: by split, kind and place.
    """

    sources: dict[str, Source]
    parsed: dict[str, RawSplit]
    raws: dict[str, RawSplit]
    files: dict[Path, ImageFile | None]
    findings: list[Finding]

    @property
    def num_errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        """How many findings are warnings."""
        return len(self.findings) - self.num_errors


def examine(sources: Mapping[str, Source], watch: Watch = unwatched) -> Inspection:
    """Looks through a data set.

    Args:
        sources: of each split, in the order train, val, test.
        watch: goes through the images as they are decoded, for a progress bar.

    Raises:
        InputError: a split cannot be read at all, such as a json that does not parse.
    """
    sources = distinct_sources(sources)
    complaints: dict[str, list[InputError]] = {split: [] for split in sources}
    parsed = parse_splits(sources, lambda split: complaints[split].append)
    findings = [
        finding for split, raw in parsed.items() for finding in class_findings(split, raw, origin(sources[split]))
    ]
    findings += list(_differing_classes(parsed, sources))
    raws = share_classes(parsed, sources)
    findings += _alike_over_splits(raws, findings, sources)
    files = _inspect(raws, watch)
    raws = {split: _fill_sizes(raw, files) for split, raw in raws.items()}
    for split, raw in raws.items():
        here = [*complaint_findings(split, complaints[split], raw), *id_findings(split, raw), *box_findings(split, raw)]
        here += image_findings(split, raw, files) if raw.folders else []
        broken = {finding.image for finding in here if finding.severity == "error"}
        findings += [*here, *object_findings(split, raw, broken)]
    # a data set may mix splits of files with such as are made in memory
    with_files = {split: raw for split, raw in raws.items() if raw.folders}
    findings += [*stray_findings(with_files), *duplicate_findings(with_files, files)]
    findings += balance_findings(raws, origin(next(iter(sources.values()))))
    splits, kinds = ["", *raws], list(KINDS)
    findings.sort(key=lambda finding: (splits.index(finding.split), kinds.index(finding.kind)))
    return Inspection(dict(sources), parsed, raws, files, findings)


def _inspect(raws: Mapping[str, RawSplit], watch: Watch) -> dict[Path, ImageFile | None]:
    """Each image file once, however many splits name it."""
    paths = list(dict.fromkeys(path for raw in raws.values() if raw.folders for path in raw.paths()))
    missing = set(find_missing(paths))
    present = [path for number, path in enumerate(paths) if number not in missing]
    found: dict[Path, ImageFile | None] = dict.fromkeys(paths)
    found.update(zip(present, inspect_images(present, watch), strict=True))
    return found


def _fill_sizes(raw: RawSplit, files: Mapping[Path, ImageFile | None]) -> RawSplit:
    """Sizes that the annotations leave open, as the images have them."""
    sizes = np.stack([raw.widths, raw.heights], axis=1)
    for index in np.flatnonzero((sizes <= 0).any(1)).tolist():
        file = files.get(raw.path(index))
        sizes[index] = (0, 0) if file is None else (file.width, file.height)
    return raw.with_sizes(sizes)


def _differing_classes(raws: Mapping[str, RawSplit], sources: Mapping[str, Source]) -> Iterator[Finding]:
    """Splits whose own lists of classes differ from the first's; VOC splits without a list have none."""
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
                "classes_differ", split, origin(sources[split]), None, f"other classes than {first}: {detail}"
            )


def _alike_over_splits(
    raws: Mapping[str, RawSplit], known: list[Finding], sources: Mapping[str, Source]
) -> Iterator[Finding]:
    """Names that look the same, but stand in different splits."""
    if any(finding.kind == "class_names_alike" for finding in known):
        return
    split, raw = next(iter(raws.items()))
    for finding in class_findings("", raw, origin(sources[split])):
        if finding.kind == "class_names_alike":
            yield finding
