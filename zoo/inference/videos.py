"""Detections in the frames of videos, and annotated videos; read and written by PyAV, the optional package `av`."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from zoo.detector import Detector, above_score
from zoo.errors import InputError
from zoo.evaluation.predictions import encode_masks
from zoo.io.files import atomic_path, write_atomically
from zoo.report.pictures.draw import draw_prediction
from zoo.types import Image, Prediction

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
SECONDS_BETWEEN_LINES = 10.0


class Frame(NamedTuple):
    """A frame of a video: uint8 [3, H, W], upright, and its time in seconds."""

    image: Image
    time: float


def is_video(path: str) -> bool:
    """Whether a path is that of a video, by its suffix."""
    return "://" not in path and Path(path).suffix.lower() in VIDEO_SUFFIXES


def require_reader(path: str) -> None:
    """Check that videos can be read.

    Raises:
        InputError: PyAV is not installed, or the file is missing.
    """
    if find_spec("av") is None:
        raise InputError("is a video: pip install detection-zoo[video], or save its frames as images", path)
    if not Path(path).is_file():
        raise InputError("no such file", path)


def predict_video(
    detector: Detector,
    file: Path,
    out: Path,
    minimum: float | Tensor,
    batch_size: int,
    context: Callable[[], AbstractContextManager[object]],
    log: Callable[[str], object] = print,
) -> int:
    """Write the detections of each frame to `<out>.json`, and the annotated video to `<out>.mp4`.

    Args:
        detector: on the device to use, in eval mode.
        file: the video.
        out: path of the two files without suffix.
        minimum: score of the detections that are kept, or of each class [C].
        batch_size: frames a batch.
        context: entered around each batch, for example the autocast of a Lightning precision plugin.
        log: called with a line of progress now and then.

    Returns:
        Number of frames.

    Raises:
        InputError: the file cannot be read as a video. Nothing is written then.
    """
    frames = _read_frames(file)
    first = next(frames, None)
    if first is None:
        raise InputError("has no frames", file)
    found: list[dict[str, Any]] = []
    count, last_line = 0, time.monotonic()
    with atomic_path(out.with_name(f"{out.name}.mp4")) as temporary, _Writer(temporary, file) as writer:
        for group in _in_batches(chain([first], frames), batch_size):
            with context():
                predictions = [above_score(one, minimum) for one in detector([frame.image for frame in group])]
            for frame, prediction in zip(group, predictions, strict=True):
                prediction = cast(Prediction, {key: cast(Tensor, value).cpu() for key, value in prediction.items()})
                found += _detections(detector, count, frame, prediction)
                writer.write(draw_prediction(frame.image, prediction, detector.class_names))
                count += 1
            if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                log(f"{file}: {count} frames")
    content = {"video": str(file), "width": first.image.shape[2], "height": first.image.shape[1], "frames": count}
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps({**content, "detections": found}) + "\n")
    return count


def _in_batches(frames: Iterator[Frame], size: int) -> Iterator[Sequence[Frame]]:
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _read_frames(file: Path) -> Iterator[Frame]:
    """The frames of the first video stream, turned upright as players do."""
    import av

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise InputError("has no video stream", file)
            for frame in container.decode(video=0):
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
                yield Frame(image, float(frame.time or 0.0))
    except av.FFmpegError as error:
        raise InputError(f"cannot be read as a video ({error.strerror or error})", file) from error


class _Writer:
    """Writes frames as H.264 (MPEG-4 where PyAV lacks it) at the frame rate of another video."""

    def __init__(self, path: Path, source: Path) -> None:
        import av

        with av.open(str(source)) as container:
            self.rate = container.streams.video[0].average_rate or 25
        self.source = source
        self.container = av.open(str(path), "w", format="mp4")
        self.stream: Any = None

    def __enter__(self) -> "_Writer":
        return self

    def write(self, image: Image) -> None:
        """Add a frame.

        Raises:
            InputError: it is larger than the first one.
        """
        import av

        if self.stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self.stream = self.container.add_stream(codec, rate=self.rate)
            # Sides of H.264 are even.
            self.stream.height, self.stream.width = (side + side % 2 for side in image.shape[1:])
            self.stream.pix_fmt = "yuv420p"
        if image.shape[1] > self.stream.height or image.shape[2] > self.stream.width:
            raise InputError("its frames become larger in the middle; cut it there", self.source)
        canvas = np.zeros((self.stream.height, self.stream.width, 3), np.uint8)
        canvas[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0).numpy()
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()


def _detections(detector: Detector, number: int, frame: Frame, prediction: Prediction) -> Iterator[dict[str, Any]]:
    """The detections of a frame, boxes as x, y, width and height, masks as COCO's run lengths."""
    size = tuple(frame.image.shape[1:])
    masks: list[dict[str, Any]] = [
        {"segmentation": {"size": size, "counts": text.decode()}} for text in encode_masks(prediction, *size)
    ] or [{}] * len(prediction["scores"])
    rows = zip(prediction["boxes"].tolist(), prediction["scores"].tolist(), detector.names(prediction), strict=True)
    for ((x1, y1, x2, y2), score, name), mask in zip(rows, masks, strict=True):
        box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        seconds = round(frame.time, 4)
        yield {"frame": number, "time": seconds, "category": name, "score": round(score, 5), "bbox": box, **mask}
