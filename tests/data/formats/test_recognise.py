import json

import pytest
import yaml
from PIL import Image as PILImage
from tiny_data import write_files

from zoo.cli.data import find_sources
from zoo.cli.main import main
from zoo.data.formats.coco import Coco
from zoo.data.formats.recognise import data_arguments, is_data_set, recognise, split_name
from zoo.data.formats.voc import Voc
from zoo.data.formats.yolo import Yolo
from zoo.errors import InputError
from zoo.experiment.gather import read_data_config
from zoo.training.configuration import build_data, instantiate, make_parser, parse


def write_json(path, name="a.png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    images = [{"id": 1, "file_name": name, "width": 40, "height": 30}]
    path.write_text(json.dumps({"images": images, "annotations": [box], "categories": [{"id": 1, "name": "nut"}]}))


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (40, 30)).save(path)


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("instances_train2017", "train"),
        ("instances_val2014_100", "val"),
        ("validation", "val"),
        ("trainval", "trainval"),
        ("test-dev", "test"),
        ("instances_default", "default"),
    ],
)
def test_split_names(stem, split):
    assert split_name(stem) == split


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train.json", "images"),
        ("train.json", "train"),
        ("train.json", "images"),
        ("train.json", "."),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_layouts_of_coco(tmp_path, annotations, images):
    write_json(tmp_path / annotations)
    write_image(tmp_path / images / "a.png")
    for data in (tmp_path, tmp_path / annotations):
        found = recognise(data)
        assert list(found) == ["train"] or data == tmp_path / "train/_annotations.coco.json"
        source = next(iter(found.values()))
        assert isinstance(source, Coco)
        assert len(source.read()) == 1


def test_json_that_is_not_utf_8_is_an_error_when_read(tmp_path):
    write_json(tmp_path / "annotations/instances_val.json")
    file = tmp_path / "annotations/instances_val.json"
    file.write_bytes(file.read_bytes().replace(b"a.png", "\u00e4.png".encode("latin-1")))
    with pytest.raises(InputError, match=r"instances_val.json: byte .*write it as UTF-8"):
        recognise(tmp_path)["val"].read()


def test_several_folders_of_one_split_are_all_found(tmp_path):
    folders = ("train_a", "train_b", "train_c")
    for folder in folders:
        write_json(tmp_path / folder / "_annotations.coco.json")
        write_image(tmp_path / folder / "a.png")
    found = recognise(tmp_path)
    assert sorted(source.images for source in found.values()) == [str(tmp_path / folder) for folder in folders]


def test_captions_are_not_recognised_as_a_split(tmp_path):
    write_json(tmp_path / "annotations/instances_val.json")
    (tmp_path / "annotations/captions_val.json").write_text('{"images": [], "annotations": [{"caption": "a nut"}]}')
    assert [source.annotations for source in recognise(tmp_path).values()] == [
        str(tmp_path / "annotations/instances_val.json")
    ]


def make_voc(root, *splits):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in splits:
        (root / "ImageSets/Main" / f"{split}.txt").write_text("")


def test_layouts_of_voc(tmp_path):
    make_voc(tmp_path / "kit/VOC2007", "train", "val", "trainval", "test", "cat_train")
    make_voc(tmp_path / "kit/VOC2012", "train", "val")
    roots = [str(tmp_path / "kit" / year) for year in ("VOC2007", "VOC2012")]
    assert recognise(tmp_path / "kit/VOC2007") == {split: Voc(roots[:1], split) for split in ("train", "val", "test")}
    devkit = {"train": Voc(roots, "train"), "val": Voc(roots, "val"), "test": Voc(roots[:1], "test")}
    assert recognise(tmp_path / "kit") == devkit
    make_voc(tmp_path / "above/VOCdevkit/VOC2007", "trainval")
    assert list(recognise(tmp_path / "above")) == ["trainval"]
    make_voc(tmp_path / "none")
    with pytest.raises(InputError, match="but no split"):
        recognise(tmp_path / "none")


def test_layouts_of_yolo(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / "a/images" / split / "1.png")
        (tmp_path / "a/labels" / split).mkdir(parents=True)
        (tmp_path / "a/labels" / split / "1.txt").write_text("2 .5 .5 .5 .5\n")
    found = recognise(tmp_path / "a")
    assert found == {split: Yolo(str(tmp_path / "a"), split) for split in ("train", "val")}
    table = found["val"].read()
    assert (table.classes, table.labels.tolist()) == (("0", "1", "2"), [2])
    (tmp_path / "a/classes.txt").write_text("nut\nbolt\nscrew\n")
    assert found["val"].read().classes == ("nut", "bolt", "screw")

    data = tmp_path / "a/data.yaml"
    data.write_text(yaml.safe_dump({"val": "images/val", "train": "images/train", "names": ["nut", "bolt", "screw"]}))
    for given in (data, tmp_path / "a"):
        assert recognise(given) == {split: Yolo(str(data), split) for split in ("train", "val")}
        assert list(recognise(given)) == ["train", "val"]

    write_image(tmp_path / "b/images/1.png")
    (tmp_path / "b/labels").mkdir()
    assert list(recognise(tmp_path / "b")) == ["all"]
    assert len(recognise(tmp_path / "b")["all"].read()) == 1


def test_unrecognised_data_is_a_one_line_error_with_the_expected_formats(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "list.json").write_text("[1, 2]")
    for name in ("empty", "notes.txt", "list.json", "nowhere"):
        for verb in ("stats", "doctor"):
            assert main([verb, str(tmp_path / name)]) == 2
            output = capsys.readouterr()
            assert output.out == ""
            assert output.err.count("\n") == 1
            assert name in output.err
            assert "expected a COCO json, a VOC folder" in output.err


def test_data_configuration_is_read_as_for_fit(tmp_path):
    file = tmp_path / "mine.yaml"
    source = {"class_path": "zoo.data.formats.shapes.Shapes", "init_args": {"num_images": 3, "seed": 1}}
    file.write_text(yaml.safe_dump({"name": "mine", "val": source, "test": source, "batch_size": 2}))
    assert list(find_sources(file)) == ["val", "test"]
    assert main(["stats", str(file), "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["data"] == "mine"
    assert numbers["splits"]["val/test"]["images"] == 3
    page = (tmp_path / "a.html").read_text()
    assert "val/test" in page
    assert "://" not in page
    assert main(["doctor", str(file)]) == 0


def test_data_set_is_accepted_instead_of_a_data_configuration(tmp_path):
    write_files(tmp_path / "things.v2")
    parser = make_parser()
    described = instantiate(parser, parse(parser, ["--data", str(tmp_path / "things.v2" / "data.yaml")])).data
    for words in (["--data", str(tmp_path / "things.v2")], [f"--data={tmp_path / 'things.v2'}"]):
        built = instantiate(parser, parse(parser, [*words, "--data.batch_size", "3"])).data
        assert built.sources == described.sources
        assert (built.name, built.batch_size) == ("things.v2", 3)
    alone = instantiate(parser, parse(parser, ["--data", str(tmp_path / "things.v2" / "val.json")])).data
    assert alone.sources == {"val": described.sources["val"]}
    assert alone.name == "val"


def test_report_accepts_a_data_set(tmp_path):
    write_files(tmp_path)
    section, origin = read_data_config([], tmp_path)
    assert origin == tmp_path
    assert build_data(yaml.safe_load(section), origin).sources == recognise(tmp_path)


def test_trainval_is_used_for_training_without_train(tmp_path):
    for name in ("trainval", "test", "other"):
        write_json(tmp_path / "annotations" / f"{name}.json")
    described = data_arguments(tmp_path)
    assert list(described) == ["name", "train", "test"]
    assert described["train"]["class_path"] == "zoo.data.formats.coco.Coco"
    assert described["train"]["init_args"]["annotations"] == str(tmp_path / "annotations" / "trainval.json")
    write_json(tmp_path / "annotations" / "train.json")
    assert data_arguments(tmp_path)["train"]["init_args"]["annotations"] == str(tmp_path / "annotations" / "train.json")


def test_unknown_split_names_are_an_error(tmp_path):
    write_json(tmp_path / "nuts.json")
    with pytest.raises(InputError, match="the splits are nuts; write a data configuration that sets `train`"):
        data_arguments(tmp_path / "nuts.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not recognised"):
        parse(make_parser(), ["--data", str(tmp_path / "empty")])


def test_is_data_set(tmp_path):
    write_files(tmp_path)
    (tmp_path / "yolo.yaml").write_text("names: [nut]\ntrain: images\n")
    assert [name for name in ("", "val.json", "yolo.yaml", "data.yaml", "nowhere") if is_data_set(tmp_path / name)] == [
        "",
        "val.json",
        "yolo.yaml",
    ]
    assert not is_data_set('{"name": "' + 5000 * "x" + '"}'), "json text is not a file name"
