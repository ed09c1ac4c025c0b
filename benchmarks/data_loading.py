"""Data loading: our loaders and torchvision's reference pipeline; our COCO reader and pycocotools.

    python benchmarks/data_loading.py [--images FOLDER --annotations FILE] [--rounds 5] [--workers 2] [--repeats 8]
        [--skip-json]

Both sides decode the same JPEGs with the same number of workers, flip half of them, and send batches of eight to the
main process, in alternating order. Without --images, photo-like JPEGs of 640x480 are made. The peer is the pipeline of
torchvision's detection references: CocoDetection wrapped for transforms v2, horizontal flip, to tensor, to float,
sanitize.

The json has the size of COCO's instances_train2017.json (118,287 images, 860,001 boxes with polygons, about 440 MB).
Each read runs in a new process that has imported torch; memory is the peak above that.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import torchvision
from PIL import Image as PILImage
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from zoo.data.augment import Augment
from zoo.data.dataset import DetectionDataset, ImageCache, collate
from zoo.data.formats.coco import Coco

BATCH_SIZE = 8
PEER = f"torchvision {torchvision.__version__} reference pipeline"

READ_JSON = """
import contextlib, io, resource, sys, time
import torch
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    content = {call}
seconds = time.perf_counter() - start
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
READERS = {
    "ours": ("from zoo.data.formats.coco import read_coco", "read_coco(sys.argv[1])"),
    "peer": ("from pycocotools.coco import COCO", "COCO(sys.argv[1])"),
}


def make_photos(folder: Path, count: int = 64) -> tuple[Path, Path]:
    """JPEGs with detail at every scale, about 110 kB each, and their annotation file."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        canvas = np.zeros((480, 640, 3), np.float32)
        for level in range(1, 8):  # amplitude falls with frequency, as in photographs
            grid = rng.normal(0, 1, (480 >> (7 - level), 640 >> (7 - level), 3)).astype(np.float32)
            for channel in range(3):
                canvas[:, :, channel] += (
                    np.asarray(PILImage.fromarray(grid[:, :, channel]).resize((640, 480))) * 40 / level
                )
        canvas += rng.normal(0, 9, canvas.shape[:2]).astype(np.float32)[:, :, None]
        PILImage.fromarray(np.clip(canvas + 128, 0, 255).astype(np.uint8)).save(
            folder / f"images/{number}.jpg", quality=85
        )
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480})
        for _ in range(7):
            x, y, w, h = (*rng.uniform(0, 300, 2), *rng.uniform(10, 150, 2))
            box = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": w * h}
            annotations.append(box | {"bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y, x, y + h]]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "images", folder / "annotations.json"


def make_json(path: Path, num_images: int = 118_287, num_boxes: int = 860_001) -> None:
    """A file like instances_train2017.json. Polygons are drawn from a pool, since only their length matters."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.9, 0.6, 2000), 4, 400).astype(int)
    pool = ["[[" + ", ".join(f"{value:.2f}" for value in rng.uniform(0, 640, 2 * length)) + "]]" for length in lengths]
    image_ids = np.sort(rng.integers(1, num_images + 1, num_boxes))
    boxes = np.concatenate([rng.uniform(0, 300, (num_boxes, 2)), rng.uniform(5, 150, (num_boxes, 2))], 1).round(2)
    categories, polygons = rng.integers(1, 81, num_boxes), rng.integers(0, len(pool), num_boxes)
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        for number in range(1, num_images + 1):
            comma = ", " if number > 1 else ""
            file.write(
                f'{comma}{{"license": 3, "file_name": "{number:012d}.jpg", "coco_url": "http://images.cocodataset.org/'
                f'train2017/{number:012d}.jpg", "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", '
                f'"flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg", "id": {number}}}'
            )
        file.write('], "annotations": [')
        for row in range(num_boxes):
            x, y, w, h = boxes[row].tolist()
            comma = ", " if row else ""
            file.write(
                f'{comma}{{"segmentation": {pool[polygons[row]]}, "area": {w * h * 0.7:.4f}, "iscrowd": 0, "image_id": '
                f'{image_ids[row]}, "bbox": [{x}, {y}, {w}, {h}], "category_id": {categories[row]}, "id": {row + 1}}}'
            )
        names = [{"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)]
        file.write(f'], "categories": {json.dumps(names)}}}')


def peer_loader(images: Path, annotations: Path, repeats: int, workers: int) -> DataLoader:
    """The training loader of torchvision's references."""
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat("XYXY"),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDetection(str(images), str(annotations), transforms=transforms)
    with_objects = [index for index, image_id in enumerate(dataset.ids) if dataset.coco.getAnnIds(image_id)]
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "image_id"))
    subset = Subset(wrapped, with_objects * repeats)
    return _loader(subset, lambda batch: tuple(zip(*batch, strict=True)), workers)


def our_loader(images: Path, annotations: Path, repeats: int, workers: int, cached: bool) -> DataLoader:
    source = Coco(str(annotations), str(images))
    table = source.read()
    table = table.select(np.tile(np.flatnonzero(np.diff(table.offsets)), repeats))
    cache = ImageCache(table.widths, table.heights, 4000) if cached else None
    return _loader(DetectionDataset(table, source, Augment(), cache=cache), collate, workers)


def _loader(dataset: torch.utils.data.Dataset, collate_fn: Callable, workers: int) -> DataLoader:
    return DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=workers, collate_fn=collate_fn, persistent_workers=workers > 0
    )


def images_per_second(loader: DataLoader) -> float:
    """Images per second of one epoch, from requesting the first batch to receiving the last."""
    start = time.perf_counter()
    count = sum(len(images) for images, _ in loader)
    return count / (time.perf_counter() - start)


def measure_loading(images: Path, annotations: Path, rounds: int, workers: int, repeats: int) -> Iterator[dict]:
    loaders = {
        "peer": peer_loader(images, annotations, repeats, workers),
        "ours": our_loader(images, annotations, repeats, workers, cached=False),
        "cached": our_loader(images, annotations, repeats, workers, cached=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for loader in loaders.values():
        images_per_second(loader)  # starts the workers and fills the cache
    for _ in range(rounds):
        for name, loader in loaders.items():
            speeds[name].append(images_per_second(loader))
    for name, case in (("ours", "load"), ("cached", "load_cached")):
        yield _case(f"{case}/workers{workers}", speeds[name], speeds["peer"], PEER, "images/s", larger_is_better=True)


def measure_json(rounds: int) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "instances.json")
        make_json(file)
        print(f"json of {file.stat().st_size / 1e6:.0f} MB")
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
        for _ in range(rounds):
            for name, (imports, call) in READERS.items():
                script = READ_JSON.format(imports=imports, call=call)
                output = subprocess.run(
                    [sys.executable, "-c", script, str(file)], check=True, capture_output=True, text=True
                )
                seconds, megabytes = output.stdout.split()
                measured[name].append((float(seconds), float(megabytes)))
    for position, (case, unit) in enumerate((("coco_json/time", "s"), ("coco_json/peak_memory", "MB"))):
        ours, peer = ([values[position] for values in measured[name]] for name in ("ours", "peer"))
        yield _case(case, ours, peer, "pycocotools COCO()", unit, larger_is_better=False)


def measure_worker_memory(images: Path, annotations: Path) -> dict:
    """Unshared memory of a loader's worker in the middle of an epoch."""
    loader = our_loader(images, annotations, 4, 2, cached=False)
    batches = iter(loader)
    next(batches)
    # forked workers have the command line of this process; there are no other such children yet
    workers = [child for child in psutil.Process().children() if child.cmdline() == psutil.Process().cmdline()]
    megabytes = statistics.median(worker.memory_full_info().uss / 1e6 for worker in workers)
    print(f"{'worker_memory':26} {len(workers)} workers of {megabytes:.1f} MB each")
    case = {"case": "worker_memory", "ours": round(megabytes, 1), "peer": 60, "peer_name": "bound", "unit": "MB"}
    return case | {"ratio": round(60 / megabytes, 2)}


def _case(
    case: str, ours: list[float], peer: list[float], peer_name: str, unit: str, *, larger_is_better: bool
) -> dict:
    for name, values in (("ours", ours), (peer_name, peer)):
        low, high = min(values), max(values)
        print(f"{case:26} {name:42} {statistics.median(values):9.1f} {unit:9} ({low:.1f} .. {high:.1f})")
    mine, theirs = statistics.median(ours), statistics.median(peer)
    ratio = mine / theirs if larger_is_better else theirs / mine
    return {
        "case": case,
        "ours": round(mine, 2),
        "peer": round(theirs, 2),
        "peer_name": peer_name,
        "unit": unit,
        "ratio": round(ratio, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8, help="passes over the images per epoch")
    parser.add_argument("--skip-json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}; command: {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is None:
            images, annotations = make_photos(Path(folder))
        else:
            images, annotations = arguments.images, arguments.annotations
        cases = [measure_worker_memory(images, annotations)]
        cases += measure_loading(images, annotations, arguments.rounds, arguments.workers, arguments.repeats)
    if not arguments.skip_json:
        cases += measure_json(min(arguments.rounds, 3))
    for case in cases:
        print(json.dumps(case))


if __name__ == "__main__":
    main()
