"""A data set of a few small images in COCO format, and configuration files for it and for TinyDetector."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

NUM_IMAGES = {"train": 8, "val": 3, "test": 4}


def write_split(folder: Path, split: str, num_images: int, class_names: tuple[str, ...] = ("box", "bar")) -> None:
    """Write bright rectangles on dark noise; the last image has none. Category ids 3, 6, ..., image ids 10, 11, ..."""
    random = np.random.default_rng(list(NUM_IMAGES).index(split))
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(num_images):
        pixels = random.integers(0, 60, (32, 48, 3), dtype=np.uint8)
        name, image_id = f"{index}.png", 10 + index
        images.append({"id": image_id, "file_name": name, "width": 48, "height": 32})
        for category in range(len(class_names)) if index < num_images - 1 else ():
            x, y = (int(edge) for edge in random.integers(0, 16, 2))
            pixels[y : y + 12, x : x + 20] = 255 - 90 * category
            number = len(annotations) + 1
            entry = {"id": number, "image_id": image_id, "category_id": 3 * (category + 1), "bbox": [x, y, 20, 12]}
            corners = [x, y, x + 20, y, x + 20, y + 12, x, y + 12]
            annotations.append(entry | {"area": 240, "iscrowd": 0, "segmentation": [corners]})
        Image.fromarray(pixels).save(folder / split / name)
    categories = [{"id": 3 * (label + 1), "name": name} for label, name in enumerate(class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def write_files(folder: Path, **model: object) -> None:
    """Write the images, data.yaml, model.yaml and trainer.yaml; paths in them are absolute."""
    for split, num_images in NUM_IMAGES.items():
        write_split(folder, split, num_images)
    write_yaml(folder / "data.yaml", data_config(folder))
    write_yaml(folder / "model.yaml", model_config(**model))
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "log_every_n_steps": 1, "logger": None}
    write_yaml(folder / "trainer.yaml", trainer)


def data_config(folder: Path) -> dict[str, object]:
    sources: dict[str, object] = {
        split: {
            "class_path": "zoo.data.formats.coco.Coco",
            "init_args": {"annotations": str(folder / f"{split}.json"), "images": str(folder / split)},
        }
        for split in NUM_IMAGES
    }
    return sources | {"name": "tiny", "batch_size": 4, "num_workers": 0}


def model_config(**init_args: object) -> dict[str, object]:
    return {"class_path": "tiny_detector.TinyDetector", "init_args": init_args}


def write_yaml(file: Path, content: object) -> None:
    file.write_text(yaml.safe_dump(content))
