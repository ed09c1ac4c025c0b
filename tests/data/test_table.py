import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.table import AnnotationTable, concatenate


def make_table(**changes) -> AnnotationTable:
    """Three images; the second has no object, the objects of the first and third are not sorted."""
    rows = {
        "classes": ["cat", "dog"],
        "class_ids": np.array([3, 17]),
        "image_ids": np.array([10, 5, 99]),
        "widths": np.array([40, 30, 20]),
        "heights": np.array([20, 30, 40]),
        "file_names": ["a.jpg", "böse/ü.png", "c.jpg"],
        "folders": ["/x", "/y"],
        "folder_ids": np.array([0, 1, 0]),
        "image_index": np.array([2, 0, 2]),
        "boxes": np.array([[0.1, 0, 10, 10], [5, 5, 40.3, 15], [1, 2, 3, 4.5]]),
        "labels": np.array([1, 0, 0]),
        "difficult": np.array([False, True, False]),
    }
    return AnnotationTable.from_rows(**(rows | changes))


def test_objects_are_sorted_by_image_and_keep_their_order():
    table = make_table()
    assert table.offsets.tolist() == [0, 1, 1, 3]
    assert table.labels.tolist() == [0, 1, 0]
    assert table.annotation_ids.tolist() == [2, 1, 3]
    assert table.areas.tolist() == pytest.approx([353, 99, 5])
    assert table.difficult.tolist() == [True, False, False]


def test_names_and_paths():
    table = make_table()
    assert [table.file_name(i) for i in range(3)] == ["a.jpg", "böse/ü.png", "c.jpg"]
    assert str(table.path(1)) == "/y/böse/ü.png"


def test_target_clips_boxes_and_does_not_change_the_table():
    table = make_table()
    target = table.target(0)
    assert target["boxes"].tolist() == [[5, 5, 40, 15]]
    assert table.boxes[0, 2] == 40.3
    assert target["boxes"].dtype == torch.float32
    assert target["image_id"].item() == 10
    target["labels"] += 1
    assert table.labels[0] == 0
    empty = table.target(1)
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)


def test_select_keeps_objects_of_the_images():
    table = make_table().select([2, 1])
    assert table.image_ids.tolist() == [99, 5]
    assert table.offsets.tolist() == [0, 2, 2]
    assert table.annotation_ids.tolist() == [1, 3]
    assert table.file_name(1) == "böse/ü.png"
    assert len(table.select([])) == 0


@given(st.lists(st.integers(0, 2), max_size=6))
@settings(max_examples=30, deadline=None)
def test_targets_of_a_selection_equal_those_of_the_table(indices):
    table = make_table()
    part = table.select(indices)
    for place, index in enumerate(indices):
        for key, value in table.target(index).items():
            assert torch.equal(part.target(place)[key], value)
        assert part.path(place) == table.path(index)


def test_concatenate_renumbers_only_duplicate_ids():
    table = make_table()
    twice = concatenate([table, table])
    assert twice.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert str(twice.path(4)) == str(table.path(1))
    assert twice.target(5)["boxes"].tolist() == table.target(2)["boxes"].tolist()
    halves = concatenate([table.select([0]), table.select([1, 2])])
    assert halves.image_ids.tolist() == [10, 5, 99]
    with pytest.raises(ValueError, match="same classes"):
        concatenate([table, make_table(classes=["cat", "cow"])])


def test_fingerprint_depends_on_content_but_not_on_folders():
    table = make_table()
    assert table.fingerprint() == pickle.loads(pickle.dumps(table)).fingerprint()
    assert table.fingerprint() == make_table(folders=["/elsewhere", "/y"]).fingerprint()
    assert table.fingerprint() != make_table(labels=np.array([1, 0, 1])).fingerprint()
    assert table.fingerprint() != make_table(file_names=["a.jpg", "b.jpg", "c.jpg"]).fingerprint()


def test_columns_of_wrong_length_or_type_are_an_error():
    table = make_table()
    columns = {name: getattr(table, name) for name in table.__dataclass_fields__}
    with pytest.raises(ValueError, match="areas has 2 rows"):
        AnnotationTable(**(columns | {"areas": table.areas[:2]}))
    with pytest.raises(ValueError, match="labels must lie in"):
        make_table(labels=np.array([2, 0, 0]))
    with pytest.raises(ValueError, match="boxes is float32"):
        AnnotationTable(**(columns | {"boxes": table.boxes.astype(np.float32)}))
