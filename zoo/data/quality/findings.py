"""What can be wrong with a data set: every kind of fault, how grave it is, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        severity: an error makes reading fail, teaches something false or spoils a measurement; a warning may be meant.
        title: in words, for a heading.
        advice: what to do.
        remedy: what a cleaned copy does about it; "" where it leaves it as it is.
    """

    severity: Severity
    title: str
    advice: str
    remedy: str = ""


KINDS: dict[str, Kind] = {
    # Files that hold annotations
    "broken_annotation": Kind(
        "error", "Annotations that cannot be read", "mend the record", "what cannot be read is left out"
    ),
    "missing_annotation": Kind(
        "error", "Images without annotation", "annotate the image, or take it out of the split", "image left out"
    ),
    "annotation_without_image": Kind(
        "warning", "Annotations without image", "add the image, or remove the file", "not copied"
    ),
    "unlisted_image": Kind(
        "warning", "Images that no split names", "name it in a split, or remove the file", "not copied"
    ),
    "image_listed_twice": Kind("error", "Images listed twice", "list it once", "listed once"),
    # Image files
    "missing_image": Kind(
        "error", "Missing images", "add the file, or take it out of the annotation", "image left out"
    ),
    "broken_image": Kind("error", "Unreadable or truncated images", "replace or remove it", "image left out"),
    "wrong_size": Kind(
        "error",
        "Sizes that differ from the annotation",
        "correct the size, and look whether the boxes still fit",
        "size corrected where the boxes fit, else image left out",
    ),
    "rotated_image": Kind(
        "warning",
        "EXIF rotation",
        "save it upright without the tag: many tools ignore it",
        "saved upright, without tag",
    ),
    "in_two_splits": Kind(
        "error", "Images in two splits", "keep it in one split only", "kept in the later split (test before val, train)"
    ),
    "same_image_twice": Kind("warning", "Identical files in one split", "keep one of them"),
    # Ids and classes
    "image_id_twice": Kind("error", "Image ids used twice", "give each image its own id", "images left out"),
    "annotation_id_twice": Kind("error", "Annotation ids used twice", "number them anew", "numbered anew"),
    "class_id_twice": Kind("error", "Class ids used twice", "give each class its own id", "boxes of that id left out"),
    "unknown_image": Kind("error", "Boxes of images that are not listed", "list the image, or remove it", "left out"),
    "unknown_class": Kind("error", "Unknown classes", "name the class, or correct it", "left out"),
    "class_names_alike": Kind(
        "error", "Class names that differ only in case or spaces", "use one name", "one class, under the commonest name"
    ),
    "classes_differ": Kind("error", "Splits with other classes", "give all splits one list", "one list"),
    # Boxes
    "box_not_finite": Kind("error", "Boxes with edges that are no numbers", "annotate it again", "left out"),
    "box_reversed": Kind("error", "Reversed boxes", "swap its edges", "edges swapped"),
    "box_without_area": Kind("error", "Boxes without area", "annotate it again, or remove it", "left out"),
    "box_outside": Kind("error", "Boxes outside their image", "correct or remove it", "left out"),
    "box_doubled": Kind("error", "Boxes twice", "remove one: a detector can find only one of them", "left out"),
    "box_sticks_out": Kind("warning", "Boxes that stick out of their image", "clip it to the image", "clipped"),
    "box_tiny": Kind("warning", "Tiny boxes", "look at it: a slip of the mouse?"),
    "box_nearly_doubled": Kind("warning", "Boxes nearly twice", "look at both: one object or two?"),
    # The whole
    "image_without_objects": Kind("warning", "Images without objects", "look at it: nothing there, or forgotten?"),
    "class_without_objects": Kind("warning", "Classes without objects", "remove the class, or annotate it"),
    "class_not_trained": Kind("warning", "Classes that are measured, but not trained", "divide the splits anew"),
    "unbalanced_classes": Kind("warning", "Wildly unbalanced classes", "add images of the rare ones"),
}
"""All kinds, in the order in which they are listed."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        kind: a key of `KINDS`.
        split: where; "" for the whole data set.
        file: that has to be looked at.
        place: in the file; None where the file itself is meant.
        message: what is wrong.
        image: its place in the raw split; -1 where no image is meant.
        row: of the object in the raw split; -1 where no object is meant.
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
        """Error or warning."""
        return KINDS[self.kind].severity

    @property
    def advice(self) -> str:
        """What to do."""
        return KINDS[self.kind].advice


def count_kinds(findings: list[Finding]) -> dict[str, int]:
    """How many there are of each kind that occurs, in the order of `KINDS`."""
    counts = dict.fromkeys(KINDS, 0)
    for finding in findings:
        counts[finding.kind] += 1
    return {kind: count for kind, count in counts.items() if count}
