"""Detections in videos: each frame once, upright, with its time; the annotated video; and files that are none."""

import json
from pathlib import Path

import pytest
import torch
from tiny_detector import TinyDetector
from videos import write_turned_video, write_video

import zoo.inference.videos
from zoo.errors import InputError
from zoo.inference.videos import _read_frames, _Writer, is_video, predict_video, require_reader


@pytest.fixture
def detector() -> TinyDetector:
    torch.manual_seed(0)
    return TinyDetector(2, ["box", "bar"]).eval()


def predict(detector: TinyDetector, file: Path, out: Path, batch_size: int = 4, score: float = 0.0) -> int:
    return predict_video(detector, file, out, score, batch_size, torch.no_grad)


def test_detections_of_each_frame_and_the_annotated_video(detector: TinyDetector, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", 10)
    assert predict(detector, film, tmp_path / "out") == 10
    content = json.loads((tmp_path / "out.json").read_text())
    assert {key: content[key] for key in ("width", "height", "frames")} == {"width": 48, "height": 34, "frames": 10}
    first = detector(next(_read_frames(film)).image)
    of_first = [found for found in content["detections"] if found["frame"] == 0]
    assert len(of_first) == len(first["scores"]) > 0
    for found, box, score, name in zip(
        of_first, first["boxes"].tolist(), first["scores"].tolist(), detector.names(first), strict=True
    ):
        x, y, width, height = found["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box, abs=0.02)
        assert found["score"] == pytest.approx(score, abs=1e-5)
        assert found["category"] == name
    assert {found["frame"] for found in content["detections"]} == set(range(10))
    assert all(found["time"] == pytest.approx(found["frame"] / 10) for found in content["detections"])
    annotated = list(_read_frames(tmp_path / "out.mp4"))
    assert [tuple(frame.image.shape) for frame in annotated] == [(3, 340, 480)] * 10  # small images are enlarged
    assert [frame.time for frame in annotated] == pytest.approx([number / 10 for number in range(10)])


@pytest.mark.parametrize(
    ("matrix", "place"),
    [  # (a, b, c, d, x, y) of the file format: x' = a x + c y + x, y' = b x + d y + y
        ((1, 0, 0, 1, 0, 0), (0, 0)),
        ((0, 1, -1, 0, 32, 0), (0, 1)),  # a quarter turn to the right
        ((-1, 0, 0, -1, 48, 32), (1, 1)),
        ((0, -1, 1, 0, 0, 48), (1, 0)),
    ],
)
def test_films_of_phones_are_turned_upright(matrix: tuple[int, ...], place: tuple[int, int], tmp_path: Path) -> None:
    """Phones write the frames as the sensor lies, and a matrix that says how to turn them."""
    film = write_turned_video(tmp_path / "film.mp4", matrix)
    frame = next(_read_frames(film)).image[0]
    height, width = frame.shape
    assert (height, width) == ((32, 48) if matrix[0] else (48, 32))
    quarters = [[frame[y : y + height // 2, x : x + width // 2] for x in (0, width // 2)] for y in (0, height // 2)]
    means = torch.stack([quarter.float().mean() for row in quarters for quarter in row])
    assert divmod(int(means.argmax()), 2) == place
    assert means.max() > 200
    assert means.sort().values[-2] < 50


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_do_not_change_the_detections(detector: TinyDetector, tmp_path: Path, batch_size: int) -> None:
    film = write_video(tmp_path / "film.mp4", 7)
    predict(detector, film, tmp_path / "a", 7)
    predict(detector, film, tmp_path / "b", batch_size)
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_scores_below_the_minimum_are_left_out(detector: TinyDetector, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", 2)
    predict(detector, film, tmp_path / "out", score=1.0)
    assert json.loads((tmp_path / "out.json").read_text())["detections"] == []


def test_what_is_no_video_is_said_and_leaves_nothing(detector: TinyDetector, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    with pytest.raises(InputError, match=r"broken.mp4: cannot be read as a video"):
        predict(detector, broken, tmp_path / "out")
    whole = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.mp4: cannot be read as a video"):
        predict(detector, tmp_path / "cut.mp4", tmp_path / "out")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("out")]


def test_frames_that_become_larger_are_said(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", 1)
    with _Writer(tmp_path / "out.mp4", film) as writer:
        for height in (34, 30):
            writer.write(torch.zeros(3, height, 48, dtype=torch.uint8))
        with pytest.raises(InputError, match=r"film.mp4: its frames become larger"):
            writer.write(torch.zeros(3, 36, 48, dtype=torch.uint8))


def test_videos_need_an_optional_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [is_video(path) for path in ("a.MOV", "a.jpg", "https://example.org/a.mp4")] == [True, False, False]
    with pytest.raises(InputError, match="no such file"):
        require_reader(str(tmp_path / "a.mp4"))
    monkeypatch.setattr(zoo.inference.videos, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is a video: pip install detection-zoo\[video\], or save its frames"):
        require_reader("a.mp4")
