"""YOLO data sets as tools really write them: folders that are elsewhere, other data files, and unusual rows."""

import pytest
from paths import SHARED_CASES
from yolo_folders import EXPECTED, NAMES, ROW, add_split, picture, read_all, roboflow

from zoo.data.formats.recognise import data_arguments, is_data_set, recognise
from zoo.data.formats.yolo import Yolo
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import count_kinds
from zoo.data.source import DataWarning
from zoo.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "train: ../train/images\nval: ../valid/images\n",
        "train: C:\\Users\\me\\set.v2i\\train\\images\nval: D:/set.v2i/valid/images\n",
        "train: /content/set-1/train/images\nval: /content/set-1/valid/images\n",
        "path: ./set\ntrain: train/images\nval: valid/images\n",
        "path: ../datasets/set\ntrain: train/images\nval: [valid/images]\n",
        "path: C:\\data\\set\ntrain: train\\images\nval: valid\\images\n",
        "train: set/train\nval: set/valid\n",
    ],
)
def test_folders_that_are_beside_the_data_file_are_found_and_noted(tmp_path, text):
    root = roboflow(tmp_path / "mine")
    (root / "data.yaml").write_text(text + NAMES)
    with pytest.warns(DataWarning, match=r"data.yaml: .*is not in .*; train(/images)? is used") as caught:
        assert read_all(root) == EXPECTED
    assert len(caught) == 2, "one note a split"
    assert count_kinds(examine(recognise(root)).findings)["interpreted"] == 2


def test_folders_relative_to_the_working_directory_or_deeper_are_found(tmp_path, monkeypatch):
    roboflow(tmp_path / "mine/export")
    (tmp_path / "elsewhere").mkdir()
    text = "path: mine/export\ntrain: train/images\nval: valid/images\n" + NAMES
    (tmp_path / "elsewhere/data.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(DataWarning, match="is used"):
        assert read_all(tmp_path / "elsewhere") == EXPECTED
    (tmp_path / "mine/data.yaml").write_text("train: /kaggle/train/images\nval: /kaggle/valid/images\n" + NAMES)
    with pytest.warns(DataWarning, match="export/train/images is used"):
        assert read_all(tmp_path / "mine") == EXPECTED


def test_folders_that_are_not_found_or_not_certain_are_errors(tmp_path):
    root = roboflow(tmp_path / "mine")
    add_split(root, "images/valid", "labels/valid")
    (root / "data.yaml").write_text("train: ../other/images\nval: ../val/images\n" + NAMES)
    for split in ("train", "val"):  # not the folder `images`, which holds another split
        with pytest.raises(InputError, match=r"no such folder; nor was \.\./(other|val)/images found below"):
            Yolo(str(root / "data.yaml"), split).read()
    (root / "data.yaml").write_text("train: ../train/images\n" + NAMES)
    add_split(tmp_path, "train/images", "train/labels")
    with pytest.raises(InputError, match=r"not certain which file or folder \.\./train/images means"):
        Yolo(str(root / "data.yaml")).read()


def test_lists_of_images_of_another_machine(tmp_path):
    roboflow(tmp_path)
    (tmp_path / "train.txt").write_text("\ufeffdata/train/images/a.png\r\nD:\\data\\train\\images\\b.png\r\n", "utf-8")
    (tmp_path / "data.yaml").write_text("train: /content/train.txt\n" + NAMES)
    with pytest.warns(DataWarning) as caught:
        assert read_all(tmp_path) == {"train": (2, 2)}
    assert [str(warning.message).split(": ", 1)[1][:20] for warning in caught] == [
        "/content/train.txt i",
        "2 of 2 images are no",
    ]


def test_export_of_cvat_with_lists(tmp_path):
    for split, stems in (("train", "ab"), ("val", "c")):
        add_split(tmp_path, f"images/{split}", f"labels/{split}", stems)
        (tmp_path / f"{split}.txt").write_text("".join(f"data/images/{split}/{stem}.png\n" for stem in stems))
    (tmp_path / "data.yaml").write_text("path: .\ntrain: train.txt\nval: val.txt\nnames:\n  0: nut\n  1: bolt\n")
    with pytest.warns(DataWarning, match="found by base name"):
        assert read_all(tmp_path) == EXPECTED


LAYOUTS = {
    "{split}/images and {split}/labels": ("{}/images", "{}/labels"),
    "{split}": ("{}", "{}"),
    "images/{split} only": ("images/{}", "images/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folders", [("train", "val"), ("Train", "Validation"), ("train2017", "val_images")])
@pytest.mark.filterwarnings("ignore:.*beside their images")
def test_layouts_without_a_data_file(tmp_path, layout, folders):
    for folder, stems in zip(folders, ("ab", "c"), strict=True):
        add_split(tmp_path, *(place.format(folder) for place in LAYOUTS[layout]), stems)
    assert read_all(tmp_path) == EXPECTED
    assert data_arguments(tmp_path)["train"]["init_args"] == {"data": str(tmp_path), "split": folders[0]}
    assert recognise(tmp_path)["val"].read().classes == ("0", "1")
    (tmp_path / "classes.txt").write_text("nut\nbolt\n")
    assert recognise(tmp_path)["val"].read().classes == ("nut", "bolt")


def test_data_file_with_class_names_only(tmp_path):
    roboflow(tmp_path)
    (tmp_path / "data.yaml").write_text("nc: 2\n" + NAMES)
    assert read_all(tmp_path) == {"train": (2, 2), "valid": (1, 1)}
    assert recognise(tmp_path)["train"].read().classes == ("nut", "bolt")


def test_other_text_files_beside_the_images_are_not_labels(tmp_path):
    add_split(tmp_path, ".", ".")
    for name in ("classes.txt", "train.txt", "README.txt"):
        (tmp_path / name).write_text("nut\nbolt\n")
    assert examine(recognise(tmp_path)).findings[0].kind == "class_without_objects"
    (tmp_path / "x.txt").write_text(ROW)
    assert count_kinds(examine(recognise(tmp_path)).findings)["annotation_without_image"] == 1


def test_folder_of_images_without_labels_is_left_out(tmp_path):
    roboflow(tmp_path)
    picture(tmp_path / "test/images/x.png")
    with pytest.warns(DataWarning, match="test: has images but no labels; the split is left out"):
        assert list(recognise(tmp_path)) == ["train", "valid"]


@pytest.mark.parametrize("folder", [".", "images"])
def test_images_and_labels_in_one_folder(tmp_path, folder):
    add_split(tmp_path, folder, folder)
    (tmp_path / folder / "classes.txt").write_text("nut\nbolt\n")
    (tmp_path / folder / "README.txt").write_text("Exported in 2024\n")
    sources = recognise(tmp_path)
    assert list(sources) == ["all"]
    table = sources["all"].read() if folder == "." else None
    if folder == "images":
        with pytest.warns(
            DataWarning, match="2 label files are beside their images, not in `labels`, the first that of"
        ):
            table = sources["all"].read()
    assert (len(table), table.num_objects, table.classes) == (2, 2, ("nut", "bolt"))


def test_folders_of_images_with_captions_are_not_yolo(tmp_path):
    add_split(tmp_path, "train", "train", text="3 nuts on a table\n")
    with pytest.raises(InputError, match="format is not recognised"):
        recognise(tmp_path)


def test_lists_of_classes_that_differ_are_an_error(tmp_path):
    for split, names in (("train", "nut\nbolt\n"), ("val", "bolt\nnut\n")):
        add_split(tmp_path, split, split)
        (tmp_path / split / "classes.txt").write_text(names)
    with pytest.raises(InputError, match=r"val/classes.txt: has other classes than .*train/classes.txt"):
        recognise(tmp_path)["train"].read()


def darknet(root, prefix="data/"):
    add_split(root, "obj_train_data", "obj_train_data")
    add_split(root, "obj_valid_data", "obj_valid_data", "c")
    for split, stems in (("train", "ab"), ("valid", "c")):
        lines = [f"{prefix}obj_{split}_data/{stem}.png\n" for stem in stems]
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "obj.names").write_text("nut\nbolt\n")
    (root / "obj.data").write_text(
        f"classes = 2\ntrain = {prefix}train.txt\nvalid={prefix}valid.txt\n# a comment\nnames = {prefix}obj.names\n"
        "backup = backup/\n"
    )
    return root


@pytest.mark.parametrize("prefix", ["", "data/", "/home/me/darknet/x64/", "build\\darknet\\"])
@pytest.mark.filterwarnings("ignore::zoo.data.source.DataWarning")
def test_obj_data_of_darknet_and_cvat(tmp_path, prefix):
    root = darknet(tmp_path, prefix)
    for data in (root, root / "obj.data"):
        assert read_all(data) == {"train": (2, 2), "valid": (1, 1)}
        assert is_data_set(data)
        assert recognise(data)["train"].read().classes == ("nut", "bolt")
    assert set(data_arguments(root)) == {"name", "train", "val"}
    (root / "obj.data").write_text("train train.txt\nnames = obj.names\n")
    with pytest.raises(InputError, match=r"obj.data: line 1: expected `key = value`"):
        recognise(root / "obj.data")


def test_labels_of_darknet_for_voc(tmp_path):
    add_split(tmp_path, "VOC2007/JPEGImages", "VOC2007/labels")
    (tmp_path / "train.txt").write_text("VOC2007/JPEGImages/a.png\nVOC2007/JPEGImages/b.png\n")
    (tmp_path / "voc.names").write_text("nut\nbolt\n")
    (tmp_path / "voc.data").write_text("train = train.txt\nnames = voc.names\n")
    assert read_all(tmp_path / "voc.data") == {"train": (2, 2)}


def test_yaml_files_of_other_programs_are_passed_over(tmp_path):
    roboflow(tmp_path)
    (tmp_path / "aaa.yml").write_text("name: !!python/tuple [a, b]\n")
    (tmp_path / "bbb.yaml").write_text("a: [1\nb: {{ x }}\n")
    with pytest.warns(DataWarning) as caught:
        assert read_all(tmp_path) == {"train": (2, 2), "valid": (1, 1)}
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "aaa.yml: has no `names` and splits; the file is passed over" in messages[0]
    assert "bbb.yaml: line" in messages[1]
    assert "yaml does not parse" in messages[1]
    (tmp_path / "data.yaml").write_text("train: train/images\nval: valid/images\n" + NAMES)
    with pytest.warns(DataWarning, match="passed over"):
        assert recognise(tmp_path)["train"] == Yolo(str(tmp_path / "data.yaml"), "train")
    (tmp_path / "aaa.yml").write_text("train: valid/images\n" + NAMES)
    with pytest.warns(DataWarning, match=r"aaa.yml: is passed over, since data.yaml is used"):
        assert recognise(tmp_path)["train"] == Yolo(str(tmp_path / "data.yaml"), "train")
    (tmp_path / "data.yaml").write_text("train: [train/images\n" + NAMES)
    with pytest.raises(InputError, match=r"data.yaml: line .*yaml does not parse"):
        recognise(tmp_path)


def test_test_split_without_a_folder_is_left_out(tmp_path):
    roboflow(tmp_path)
    (tmp_path / "data.yaml").write_text("train: train/images\nval: valid/images\ntest: ../test/images\n" + NAMES)
    with pytest.warns(DataWarning, match=r"data.yaml: test: .*does not exist; the split is left out"):
        assert read_all(tmp_path) == EXPECTED


def case(name):
    path = SHARED_CASES / name
    if not path.exists():
        pytest.skip(f"../shared/cases/{name} is absent")
    return path


THREE = {"train": (8, 24), "val": (4, 12), "test": (4, 12)}


TWO = {"train": (8, 24), "val": (4, 12)}


CASES = {
    "c06_roboflow_dotdot": (THREE, 3, 3),
    "c06b_windows_absolute": (TWO, 2, 2),
    "c06e_path_relative_to_cwd": (TWO, 2, 2),
    "c07_yolo_polygons_mixed": (THREE, 3, 3),
    "c08b_float_classes_no_yaml_folder": (TWO, 0, 0),
    "c14_extensions": (TWO, 0, 0),
    "c55_unrelated_yaml": (THREE, 0, 1),
    "c58_cvat_yolo_1_1": ({"train": (12, 36)}, 2, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_shared_cases(tmp_path, name, recwarn):
    expected, num_notes, num_warnings = CASES[name]
    sources = recognise(case(name))
    inspection = examine(sources)
    assert count_kinds(inspection.findings) == ({"interpreted": num_notes} if num_notes else {})
    tables = {split: source.read() for split, source in sources.items()}
    assert {split: (len(table), table.num_objects) for split, table in tables.items()} == expected
    assert all(table.num_classes == 2 for table in tables.values())
    assert len(recwarn) == num_warnings
    write_cleaned(inspection, tmp_path / "copy")
    copied = {split: source.read() for split, source in recognise(tmp_path / "copy").items()}
    assert {split: (len(table), table.num_objects) for split, table in copied.items()} == expected


def test_shared_case_in_pixels(tmp_path):
    sources = recognise(case("c11_pixel_coordinates"))
    for source in sources.values():
        with pytest.raises(InputError, match="coordinates above 1"):
            source.read()
    inspection = examine(sources)
    assert count_kinds(inspection.findings)["coordinates_above_1"] == 16
    write_cleaned(inspection, tmp_path / "copy")
    copied = {split: source.read() for split, source in recognise(tmp_path / "copy").items()}
    assert {split: (len(table), table.num_objects) for split, table in copied.items()} == THREE
