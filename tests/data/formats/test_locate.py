from pathlib import Path

import pytest

from zoo.data.formats.locate import locate_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_listed_images_are_used_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.jpg", "val/a.jpg")
    found = locate_images(["a.jpg"], tmp_path / "train", tmp_path)
    assert (found.paths, found.note) == ([tmp_path / "train/a.jpg"], "")


@pytest.mark.parametrize("name", ["images\\a b.jpg", "a%20b.jpg", "/home/me/a b.jpg", "C:\\data\\a b.jpg"])
def test_names_from_other_computers_are_found_by_base_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "deep/images/a b.jpg", "other.jpg")
    found = locate_images([name, "other.jpg"], tmp_path / "nowhere", tmp_path)
    assert found.paths == [tmp_path / "deep/images/a b.jpg", tmp_path / "other.jpg"]
    assert found.note.startswith("2 of 2 images are not in")


def test_a_missing_image_is_not_taken_from_another_split(tmp_path: Path) -> None:
    """Where its folder has other images of the list, the folder is right and the image is missing."""
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "val/1.jpg")
    found = locate_images(["1.jpg", "2.jpg"], tmp_path / "val", tmp_path)
    assert (found.paths, found.note) == ([tmp_path / "val/1.jpg", tmp_path / "val/2.jpg"], "")
    touch(tmp_path, "val/a b.jpg")
    found = locate_images(["1.jpg", "a%20b.jpg"], tmp_path / "val", tmp_path)
    assert found.paths[1] == tmp_path / "val/a b.jpg"


def test_of_several_files_the_longest_common_path_and_then_the_folder_of_the_others_decide(tmp_path: Path) -> None:
    touch(tmp_path, "x/train/1.jpg", "x/val/1.jpg", "x/val/2.jpg", "x/test/3.jpg", "y/test/3.jpg")
    found = locate_images(["val/1.jpg"], tmp_path, tmp_path)
    assert found.paths == [tmp_path / "x/val/1.jpg"]
    found = locate_images(["old/1.jpg", "old/2.jpg"], tmp_path, tmp_path)
    assert found.paths == [tmp_path / "x/val/1.jpg", tmp_path / "x/val/2.jpg"]
    found = locate_images(["old/3.jpg"], tmp_path, tmp_path)
    assert (found.paths, found.note) == ([tmp_path / "old/3.jpg"], "")
