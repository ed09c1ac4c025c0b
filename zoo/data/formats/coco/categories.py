"""Classes among the categories of a COCO file, which may also list a root that is no class."""

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.coco.records import Category


def drop_unused(
    categories: list[Category], used_ids: NDArray[np.int64], kept_names: Sequence[str]
) -> tuple[list[Category], list[str]]:
    """(categories in the order of their ids, notes), without categories that are no classes.

    These are a root without annotations (id 0, named by others as their supercategory, or the only one whose
    supercategory is "none"), and a category without annotations that has the name of one with annotations.

    Args:
        categories: of the file.
        used_ids: category id of each annotation.
        kept_names: names of roots that are kept.
    """
    ordered = sorted(categories, key=attrgetter("id"))
    counts = Counter(category.name for category in ordered)
    suspects = [
        category for category in ordered if counts[category.name] > 1 or _is_root(category, ordered, kept_names)
    ]
    if not suspects:
        return ordered, []
    with_id = Counter(category.id for category in ordered)
    used = set(np.unique(used_ids).tolist())
    used_names = Counter(category.name for category in suspects if category.id in used)
    dropped = [
        category
        for category in suspects
        if category.id not in used
        and (used_names[category.name] == 1 or _is_root(category, ordered, kept_names))
        and with_id[category.id] == 1
    ]
    notes = [
        f"category {category.name!r} (id {category.id}) is "
        + ("a second one of this name" if counts[category.name] > 1 else "the root of the others")
        + " without annotations; it is not a class"
        for category in dropped
    ]
    return [category for category in ordered if not any(category is other for other in dropped)], notes


def _is_root(category: Category, categories: Sequence[Category], kept_names: Sequence[str]) -> bool:
    """Whether a category looks like the root that Roboflow adds to the classes."""
    if category.id != 0:
        return False
    others = [other for other in categories if other is not category]
    is_repeated = any(other.name == category.name for other in others)
    if not others or (category.name in kept_names and not is_repeated):
        return False
    parents = [other.supercategory for other in others]
    return category.name in parents or (category.supercategory == "none" and "none" not in parents)
