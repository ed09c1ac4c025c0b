"""Distances between image fingerprints: of an image and its changed copies, and of different images.

    python benchmarks/near_duplicates.py FOLDER... [--out FILE]

Pairs of different images are all pairs of images in all folders. Those within the limit for near-duplicates are listed
by name, to be inspected by hand. Without a false positive among n pairs, the rate of false positives is below 3 / n
with 95% confidence (the rule of three).
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
from zoo.data.quality.image_files import MAX_DIFFERING_BITS, bit_distances, fingerprint

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
    if not arguments.folders:  # as in `make benchmarks`
        print("no image folders given, so nothing is measured: benchmarks/near_duplicates.py FOLDER...")
        return
    paths = [path for folder in arguments.folders for path in list_images(folder)]
    images = [PILImage.open(path).convert("RGB") for path in paths]
    found = [fingerprint(np.array(image.convert("L"))) for image in images]  # None for images of one colour
    images = [image for image, bits in zip(images, found, strict=True) if bits is not None]
    paths = [path for path, bits in zip(paths, found, strict=True) if bits is not None]
    prints = np.array([bits for bits in found if bits is not None], np.uint64)
    command = f"python benchmarks/near_duplicates.py {' '.join(sys.argv[1 : 1 + len(arguments.folders)])}"
    columns = ("change", "median", "99%", "max", f"above {MAX_DIFFERING_BITS}")
    report = Report("Differing bits, of 255, between fingerprints of an image and a changed copy", command, columns)
    for name, change in CHANGES.items():
        changed = [fingerprint(np.array(change(image).convert("L"))) for image in images]
        distances = np.array([int(np.bitwise_count(a ^ b).sum()) for a, b in zip(prints, changed, strict=True)])
        quantiles = [f"{value:.0f}" for value in np.quantile(distances, QUANTILES)]
        report.row([name, *quantiles, f"{(distances > MAX_DIFFERING_BITS).mean():.1%}"])

    report.line("\n# Between fingerprints of two different images\n")
    between = bit_distances(prints, prints).astype(np.int64)
    firsts, seconds = np.triu_indices(len(prints), 1)
    near = between[firsts, seconds] <= MAX_DIFFERING_BITS
    far = between[firsts, seconds][~near]
    report.line(
        f"{len(images)} images, {len(firsts)} pairs: {int(near.sum())} differ in {MAX_DIFFERING_BITS} bits or fewer; "
        f"of the others, the smallest distance is {far.min()} and the median {np.median(far):.0f}.\n"
    )
    for first, second in zip(firsts[near], seconds[near], strict=True):
        report.line(f"- {paths[first].name} and {paths[second].name}: {between[first, second]}")
    nearest = float(far.min())
    ratio = nearest / MAX_DIFFERING_BITS
    report.case("near_duplicates/nearest_different_image", nearest, MAX_DIFFERING_BITS, "limit", "bits", ratio)
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
