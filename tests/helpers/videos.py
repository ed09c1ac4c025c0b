"""Small videos."""

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
