"""Perceptual hashes of images."""

import numpy as np
from faulty_data import HEIGHT, WIDTH, picture

from zoo.data.quality.image_files import bit_distances, find_near_duplicates, fingerprint


def test_fingerprints_of_resized_images_are_near_and_of_different_images_far():
    prints = []
    for seed in range(30):
        image = picture(seed)
        smaller = image.resize((WIDTH // 2, HEIGHT // 2))
        prints += [fingerprint(np.array(image)), fingerprint(np.array(smaller))]
    marks = np.stack(prints)
    ours, theirs = marks[::2], marks[1::2]
    expected = [[bin(int.from_bytes((a ^ b).tobytes())).count("1") for b in theirs] for a in ours]
    assert bit_distances(ours, theirs).tolist() == expected
    assert find_near_duplicates(ours, theirs).tolist() == [[i, i] for i in range(30)]
    assert find_near_duplicates(ours[:0], theirs).shape == (0, 2)
    assert fingerprint(np.full((20, 20, 3), 7, np.uint8)) is None
