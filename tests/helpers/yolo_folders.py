"""Small data sets in YOLO format, as tools lay them out."""

from PIL import Image as PILImage

from zoo.data.formats.recognise import recognise
from zoo.data.quality.doctor import examine

ROW = "1 .5 .5 .5 .4\n"


NAMES = "names: [nut, bolt]\n"


def picture(path, seed=0, size=(40, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.effect_noise(size, 50 + seed).convert("RGB").save(path)


def add_split(root, images, labels, stems="ab", text=ROW):
    """Images `<root>/<images>/<stem>.png` and their label files below `<root>/<labels>`."""
    for number, stem in enumerate(stems):
        picture(root / images / f"{stem}.png", number)
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{stem}.txt").write_text(text)


def roboflow(root, stems=("ab", "c")):
    add_split(root, "train/images", "train/labels", stems[0])
    add_split(root, "valid/images", "valid/labels", stems[1])
    return root


def read_all(data):
    """Number of (images, objects) of each split, after the doctor found no error."""
    sources = recognise(data)
    assert examine(sources).num_errors == 0
    tables = {split: source.read() for split, source in sources.items()}
    return {split: (len(table), table.num_objects) for split, table in tables.items()}


EXPECTED = {"train": (2, 2), "val": (1, 1)}
