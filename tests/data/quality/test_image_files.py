"""Perceptual hashes of images, and file names that are not UTF-8."""

import os
from pathlib import Path

import numpy as np
from faulty_data import HEIGHT, WIDTH, make, picture

from zoo.cli.main import main
from zoo.data.quality.image_files import bit_distances, find_near_duplicates, fingerprint


def test_fingerprints_of_resized_images_are_near_and_of_different_images_far():
    prints = []
    for seed in range(30):
        image = picture(seed)
        smaller = image.resize((WIDTH // 2, HEIGHT // 2))
        prints += [fingerprint(np.array(image.convert("L"))), fingerprint(np.array(smaller.convert("L")))]
    marks = np.stack(prints)
    ours, theirs = marks[::2], marks[1::2]
    expected = [[bin(int.from_bytes((a ^ b).tobytes())).count("1") for b in theirs] for a in ours]
    assert bit_distances(ours, theirs).tolist() == expected
    assert find_near_duplicates(ours, theirs).tolist() == [[i, i] for i in range(30)]
    assert find_near_duplicates(ours[:0], theirs).shape == (0, 2)
    assert fingerprint(np.full((20, 20), 7, np.uint8)) is None


def test_file_names_that_are_not_utf_8(tmp_path, capsys):
    root = make(tmp_path / "coco", "coco")
    odd = os.fsencode(root / "train") + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(b"")
    assert main(["doctor", str(root)]) == 0
    assert "\\xff.png: this image is in no split" in capsys.readouterr().out
    root = make(tmp_path / "yolo", "yolo")
    Path(os.fsdecode(os.fsencode(root / "images/train") + b"/\xff.png")).write_bytes(b"")
    assert main(["doctor", str(root)]) == 2
    assert "images/train: image name \\xff.png is not UTF-8; rename the file" in capsys.readouterr().err
