"""Small videos."""

import struct
from pathlib import Path

import av
import numpy as np


def write_video(file: Path, num_frames: int, height: int = 34, width: int = 48, rate: int = 10) -> Path:
    """Grey frames of different brightness."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((height, width, 3), 20 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


def write_turned_video(file: Path, matrix: tuple[int, ...], height: int = 32, width: int = 48) -> Path:
    """A frame whose top-left quarter is white, in a file with this matrix (a, b, c, d, x, y) in its track header."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # behind the name, flags, times, id, duration, layer and volume
    a, b, c, d, x, y = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
    file.write_bytes(content)
    return file
