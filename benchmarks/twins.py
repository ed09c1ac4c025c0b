"""How far apart fingerprints of pictures are: of one picture, resized and encoded anew, and of two different ones.

    python benchmarks/twins.py FOLDER... [--out FILE]

False alarms are counted over all pairs of images in all folders; pairs of the same scene are listed by name, to be
looked at. Without any false alarm among n pairs, the rate is below 3 / n with 95% confidence (the rule of three).
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import Report
from PIL import Image as PILImage

from zoo.data.images import list_images
from zoo.data.quality.image_files import MOST_DIFFERENT, bit_distances, fingerprint

QUANTILES = (0.5, 0.99, 1.0)


def resized(factor: float, resample: PILImage.Resampling) -> Callable[[PILImage.Image], PILImage.Image]:
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)), resample)


def encoded(form: str, **options: int) -> Callable[[PILImage.Image], PILImage.Image]:
    def encode(image: PILImage.Image) -> PILImage.Image:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return PILImage.open(buffer).convert("RGB")

    return encode


CHANGES: dict[str, Callable[[PILImage.Image], PILImage.Image]] = {
    "a fifth of the size": resized(0.2, PILImage.Resampling.BICUBIC),
    "half the size": resized(0.5, PILImage.Resampling.BICUBIC),
    "half the size, nearest": resized(0.5, PILImage.Resampling.NEAREST),
    "twice the size": resized(2, PILImage.Resampling.BICUBIC),
    "416 x 416, stretched": lambda image: image.resize((416, 416)),
    "JPEG, quality 75": encoded("JPEG", quality=75),
    "JPEG, quality 30": encoded("JPEG", quality=30),
    "JPEG, quality 10": encoded("JPEG", quality=10),
    "WebP, quality 50": encoded("WEBP", quality=50),
    "a quarter of the size, JPEG 50": lambda image: encoded("JPEG", quality=50)(
        resized(0.25, PILImage.Resampling.BICUBIC)(image)
    ),
    "2% cut off each side": lambda image: image.crop(
        (image.width // 50, image.height // 50, image.width - image.width // 50, image.height - image.height // 50)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not arguments.folders:  # as `make benchmarks` calls it
        print("no folders of photographs given: nothing measured")
        return
    paths = [path for folder in arguments.folders for path in list_images(folder)]
    images = [PILImage.open(path).convert("RGB") for path in paths]
    prints = np.array([fingerprint(np.array(image)) for image in images], np.uint64)
    command = f"python benchmarks/twins.py {' '.join(sys.argv[1 : 1 + len(arguments.folders)])}"
    columns = ("change", "median", "99%", "most", f"above {MOST_DIFFERENT}")
    report = Report("Bits of 255 in which fingerprints of one picture differ", command, columns)
    for name, change in CHANGES.items():
        changed = [fingerprint(np.array(change(image))) for image in images]
        distances = np.array([int(np.bitwise_count(a ^ b).sum()) for a, b in zip(prints, changed, strict=True)])
        quantiles = [f"{value:.0f}" for value in np.quantile(distances, QUANTILES)]
        report.row([name, *quantiles, f"{(distances > MOST_DIFFERENT).mean():.1%}"])

    report.say("\n# Of two different images\n")
    between = bit_distances(prints, prints).astype(np.int64)
    rows, columns_ = np.triu_indices(len(prints), 1)
    near = between[rows, columns_] <= MOST_DIFFERENT
    far = between[rows, columns_][~near]
    report.say(
        f"{len(images)} images, {len(rows)} pairs: {int(near.sum())} differ in {MOST_DIFFERENT} bits or fewer, "
        f"the next in {far.min()}, half of all in {np.median(far):.0f} or more.\n"
    )
    for row, column in zip(rows[near], columns_[near], strict=True):
        report.say(f"- {paths[row].name} and {paths[column].name}: {between[row, column]}")
    nearest = float(far.min())
    report.case("twins/nearest_other_picture", nearest, MOST_DIFFERENT, "limit", "bits", nearest / MOST_DIFFERENT)
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
