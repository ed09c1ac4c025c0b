"""Kinds of data set errors and warnings with severity, advice and remedy; and single findings."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

UNKNOWN_IMAGE = -2


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Args:
        severity: an error makes reading fail, or makes training or evaluation wrong; a warning may be intended.
        title: heading in the list of findings.
        advice: what the user should do.
        remedy: how a cleaned copy differs; "" where the copy is unchanged.
        flag: flag of `zoo doctor` without which a cleaned copy is unchanged, since the remedy is a guess; "" if none.
    """

    severity: Severity
    title: str
    advice: str
    remedy: str = ""
    flag: str = ""


KINDS: dict[str, Kind] = {
    # Files that hold annotations
    "broken_annotation": Kind("error", "Annotations that cannot be read", "correct the record", "image left out"),
    "missing_annotation": Kind(
        "error", "Images without annotation", "annotate the image, or remove it from the split", "image left out"
    ),
    "annotation_without_image": Kind(
        "warning", "Annotations without image", "add the image, or remove the file", "not copied"
    ),
    "unlisted_image": Kind(
        "warning", "Images that are in no split", "add it to a split, or remove the file", "not copied"
    ),
    "interpreted": Kind(
        "warning", "Annotations in an unusual form", "check that they were read as intended, or correct the files"
    ),
    "image_listed_twice": Kind("error", "Images listed twice", "list it once", "listed once"),
    "annotation_shared": Kind(
        "error", "Images that share an annotation file", "rename one of them and its annotations", "images left out"
    ),
    "coordinates_above_1": Kind(
        "error", "Coordinates above 1", "divide them by the width and height of the image", "image left out"
    ),
    # Image files
    "missing_image": Kind(
        "error", "Missing images", "add the file, or remove the image from the annotations", "image left out"
    ),
    "broken_image": Kind("error", "Unreadable or truncated images", "replace or remove it", "image left out"),
    "wrong_size": Kind(
        "error",
        "Sizes that differ from the annotation",
        "correct the size, and check whether the boxes still fit",
        "size corrected where it is swapped or not positive and the boxes fit, else image left out",
    ),
    "rotated_image": Kind(
        "warning",
        "EXIF rotation",
        "save it upright without the EXIF tag, which many tools ignore",
        "saved upright, without the tag",
    ),
    "unused_bits": Kind(
        "warning",
        "16-bit images that use fewer bits",
        "check that all images of the data set use as many, since each is read by the bits that it uses",
    ),
    "in_two_splits": Kind(
        "error", "Images in two splits", "keep it in one split only", "kept in the later split (of train, val, test)"
    ),
    "near_duplicate_in_two_splits": Kind(
        "error",
        "Near-duplicates in two splits",
        "keep it in one split only, unless these are different images of one scene",
        "kept in the later split (of train, val, test)",
        "--drop-near-duplicates",
    ),
    "same_image_twice": Kind("warning", "Identical files in one split", "keep one of them"),
    # Ids and classes
    "image_id_twice": Kind("error", "Image ids used twice", "give each image its own id", "images left out"),
    "annotation_id_twice": Kind("error", "Annotation ids used twice", "renumber the annotations", "renumbered"),
    "class_id_twice": Kind(
        "error", "Class ids used twice", "give each class its own id", "images with objects of that id left out"
    ),
    "unknown_image": Kind("error", "Boxes of unlisted images", "list the image, or remove the box", "left out"),
    "unknown_class": Kind("error", "Boxes of unknown classes", "add the class, or correct the box", "image left out"),
    "class_name_twice": Kind(
        "error", "Class names used twice", "give each class its own name", "merged into one class"
    ),
    "class_names_alike": Kind(
        "warning",
        "Class names that differ only in case or spaces",
        "use one name, if they are one class",
        "merged into one class, under the most frequent name",
        "--merge-classes",
    ),
    "classes_differ": Kind(
        "error", "Splits with different classes", "use the same classes in all splits", "one list of classes"
    ),
    # Boxes
    "box_not_finite": Kind(
        "error", "Boxes with edges that are not finite numbers", "annotate it again", "image left out"
    ),
    "box_reversed": Kind("error", "Reversed boxes", "swap its edges", "edges swapped"),
    "box_without_area": Kind("error", "Boxes without area", "annotate it again, or remove it", "image left out"),
    "box_outside": Kind("error", "Boxes outside their image", "correct or remove it", "image left out"),
    "box_doubled": Kind("error", "Duplicate boxes", "remove one; a detector can find only one of them", "left out"),
    "box_sticks_out": Kind(
        "warning", "Boxes that extend beyond their image", "clip it to the image", "clipped where this changes little"
    ),
    "boxes_are_corners": Kind(
        "error", "Corners where width and height are expected", "write each box as x, y, width, height"
    ),
    "box_unlike_polygon": Kind(
        "error", "Boxes that contradict their polygons", "correct the box or the polygon", "image left out"
    ),
    "box_tiny": Kind("warning", "Tiny boxes", "check whether it was drawn by mistake"),
    "box_nearly_doubled": Kind("warning", "Near-duplicate boxes", "check whether they are one object or two"),
    # Masks
    "mask_broken": Kind(
        "warning", "Masks that cannot be read", "correct them; detectors of masks refuse them", "mask left out"
    ),
    "mask_missing": Kind("warning", "Missing masks", "draw them; these objects do not count where masks are compared"),
    "mask_empty": Kind("warning", "Masks without pixels", "draw it again; it does not count where masks are compared"),
    "mask_outside_box": Kind("warning", "Masks outside their box", "correct the box or the mask"),
    "mask_unlike_box": Kind("warning", "Masks that disagree with their box", "correct the box or the mask"),
    "mask_in_parts": Kind("warning", "Masks of several parts", "check that they are one object, not several"),
    # Whole data set
    "split_without_objects": Kind(
        "error", "Splits without objects", "check where the annotations are; nothing can be trained or evaluated"
    ),
    "image_without_objects": Kind(
        "warning", "Images without objects", "check whether it has objects that were not annotated"
    ),
    "class_without_objects": Kind("warning", "Classes without objects", "remove the class, or annotate it"),
    "class_not_trained": Kind("warning", "Classes without training objects", "divide the data set into other splits"),
    "unbalanced_classes": Kind("warning", "Unbalanced classes", "add images of the rare classes"),
}
"""All kinds of findings, in the order of the list."""

CLEANING_FLAGS = tuple(kind.flag for kind in KINDS.values() if kind.flag)


@dataclass(frozen=True)
class Finding:
    """One error or warning about a data set.

    Args:
        kind: a key of `KINDS`.
        split: split; "" for the whole data set.
        file: file to look at.
        place: place in the file; None for the file itself.
        message: what is wrong.
        image: index of the image in the RawSplit; -1 where the finding is not about an image, UNKNOWN_IMAGE where it is
            about an object of an image that cannot be told.
        row: row of the object in the RawSplit; -1 where the finding is not about an object.
    """

    kind: str
    split: str
    file: str
    place: str | None
    message: str
    image: int = -1
    row: int = -1

    @property
    def severity(self) -> Severity:
        """Severity of the kind."""
        return KINDS[self.kind].severity

    @property
    def advice(self) -> str:
        """Advice of the kind."""
        return KINDS[self.kind].advice


def count_kinds(findings: list[Finding]) -> dict[str, int]:
    """Number of findings of each kind that occurs, in the order of `KINDS`."""
    counts = dict.fromkeys(KINDS, 0)
    for finding in findings:
        counts[finding.kind] += 1
    return {kind: count for kind, count in counts.items() if count}
