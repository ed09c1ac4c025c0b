import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from paths import SHARED_CASES, SHARED_DATA
from PIL import Image as PILImage

from zoo.data.formats.coco import Coco
from zoo.data.images import SUFFIXES, ImageFolder, list_images
from zoo.data.source import DataWarning
from zoo.errors import InputError
from zoo.io.decoding import bits_in_use, deep_pixels, load_grey, load_image, upright_size


def photo(width=37, height=21, seed=0) -> PILImage.Image:
    """Image of smooth colours, which JPEG preserves."""
    grid = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return PILImage.fromarray(grid).resize((width, height), PILImage.Resampling.BICUBIC)


def pixels(image: PILImage.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_equal_pillow(tmp_path, subsampling, progressive, mode):
    path = tmp_path / "a.jpg"
    photo(131, 77).convert(mode).save(path, quality=80, subsampling=subsampling, progressive=progressive)
    image = load_image(path)
    assert image.dtype == torch.uint8
    assert torch.equal(image, pixels(PILImage.open(path)))


def test_real_jpegs_equal_pillow():
    files = sorted((SHARED_DATA / "coco_mini" / "val2017").glob("*.jpg"))[:12]
    if not files:
        pytest.skip("../shared/data/coco_mini is absent")
    for file in files:
        assert torch.equal(load_image(file), pixels(PILImage.open(file)))


ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    photo().save(path, exif=exif)
    with PILImage.open(path) as raw:
        stored = np.array(raw)
    upright = ORIENTATIONS[orientation](stored)
    image = load_image(path)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), upright)
    assert upright_size(path) == (upright.shape[1], upright.shape[0])
    # annotations that ignore the EXIF orientation
    assert np.array_equal(load_image(path, (37, 21)).permute(1, 2, 0).numpy(), stored if orientation >= 5 else upright)


def test_a_size_that_does_not_match_with_or_without_rotation_is_an_error(tmp_path):
    photo().save(tmp_path / "a.jpg")
    for size in ((21, 37), (37, 20)):
        with pytest.raises(InputError, match=rf"a.jpg: image is 37x21 but its annotation says {size[0]}x{size[1]}"):
            load_image(tmp_path / "a.jpg", size)


def grey16() -> PILImage.Image:
    return PILImage.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(8, 32) + 200)


def write_deep_colour(path: Path, values: np.ndarray) -> None:
    assert cv2.imwrite(str(path), values[:, :, ::-1])


@pytest.mark.parametrize(("bits", "brightest"), [(8, 255), (12, 256), (12, 4095), (16, 4096), (16, 65535)])
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "colour.png", "colour.tif"])
def test_16_bit_images_keep_the_8_highest_bits_in_use(tmp_path, name, bits, brightest):
    values = np.random.default_rng(0).integers(0, brightest + 1, (12, 20, 3)).astype(np.uint16)
    values[0, 0] = brightest
    if name.startswith("grey"):
        values = values[:, :, :1]
        PILImage.fromarray(values[:, :, 0]).save(tmp_path / name)
    else:
        write_deep_colour(tmp_path / name, values)
    assert bits_in_use(values) == bits
    expected = np.broadcast_to(values >> (bits - 8), (12, 20, 3)).transpose(2, 0, 1)
    assert torch.equal(load_image(tmp_path / name), torch.from_numpy(expected.astype(np.uint8)))
    np.testing.assert_array_equal(deep_pixels(tmp_path / name).reshape(values.shape), values)


def test_truncated_16_bit_colour_image_is_damaged(tmp_path):
    write_deep_colour(tmp_path / "a.png", np.random.default_rng(0).integers(0, 4096, (90, 90, 3)).astype(np.uint16))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    with pytest.raises(InputError, match=r"a.png: image is damaged"):
        load_image(tmp_path / "a.png")


def test_images_of_8_bits_are_not_deep(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif"):
        photo().save(tmp_path / name)
        assert deep_pixels(tmp_path / name) is None


MODES = {
    "grey.png": (photo().convert("L"), lambda: pixels(photo().convert("L"))),
    "palette.png": (photo().quantize(16), lambda: pixels(photo().quantize(16))),
    "palette.gif": (photo().quantize(16), lambda: pixels(photo().quantize(16))),
    "bits.png": (photo().convert("1"), lambda: pixels(photo().convert("1"))),
    "alpha.png": (photo().convert("RGBA"), lambda: pixels(photo())),
    "grey_alpha.png": (photo().convert("LA"), lambda: pixels(photo().convert("L"))),
    "deep.png": (grey16(), lambda: torch.arange(256, dtype=torch.uint8).view(1, 8, 32).expand(3, 8, 32)),
    "deep.tif": (grey16(), lambda: torch.arange(256, dtype=torch.uint8).view(1, 8, 32).expand(3, 8, 32)),
    "lossless.webp": (photo(), lambda: pixels(photo())),
    "cmyk.tif": (photo().convert("CMYK"), lambda: pixels(photo())),
}


@pytest.mark.parametrize("name", MODES)
def test_all_modes_are_converted_to_rgb(tmp_path, name):
    image, expected = MODES[name]
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert torch.equal(load_image(tmp_path / name), expected())


def test_alpha_is_dropped_without_blending(tmp_path):
    rgba = photo().convert("RGBA")
    rgba.putalpha(7)
    rgba.save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png"), pixels(photo()))
    palette = photo().quantize(16)
    palette.save(tmp_path / "p.png", transparency=0)
    assert torch.equal(load_image(tmp_path / "p.png"), pixels(palette))


def test_cmyk_jpeg(tmp_path):
    photo().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    difference = load_image(tmp_path / "a.jpg").int() - pixels(photo()).int()
    assert difference.abs().float().mean() < 4


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("L", "png")]
)
def test_grey_image_is_that_of_the_colours(tmp_path, mode, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    photo(131, 77).convert(mode).save(path, exif=exif)
    colours = load_image(path).permute(1, 2, 0).contiguous().numpy()
    difference = load_grey(path).astype(int) - cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    assert difference.shape == ((77, 131) if orientation == 1 else (131, 77))
    assert np.abs(difference).mean() < 1  # colours are rounded and clipped
    assert np.abs(difference).max() <= 8


@pytest.mark.parametrize("load", [load_image, load_grey])
def test_damaged_files_and_files_that_are_not_images(tmp_path, load):
    buffer = io.BytesIO()
    photo(200, 200).save(buffer, format="JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:1500])
    with pytest.raises(InputError, match=r"cut.jpg: image is damaged \(.*truncated"):
        load(tmp_path / "cut.jpg")
    buffer = io.BytesIO()
    photo(200, 200).save(buffer, format="PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:1500])
    with pytest.raises(InputError, match=r"cut.png: image is damaged"):
        load(tmp_path / "cut.png")
    for name, data in (("text.jpg", b"hello"), ("empty.jpg", b""), ("stub.jpg", b"\xff\xd8\xff")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}: not an image"):
            load(tmp_path / name)
    with pytest.raises(InputError, match=r"none.jpg: image cannot be read: No such file"):
        load(tmp_path / "none.jpg")


def test_image_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    photo(30, 20).save(tmp_path / "deep/b.png")
    photo(10, 20).save(tmp_path / "a.JPG", format="jpeg")
    (tmp_path / "notes.txt").touch()
    photo(5, 6).save(tmp_path / "single.bmp")
    source = ImageFolder([str(tmp_path / "single.bmp"), str(tmp_path / "deep")])
    table = source.read(classes=("cat",))
    assert table.image_ids.tolist() == [0, 1]
    assert table.classes == ("cat",)
    assert [table.path(i) for i in range(2)] == [tmp_path / "single.bmp", tmp_path / "deep/b.png"]
    assert table.widths.tolist() == [5, 30]
    assert source.load_image(table, 1).shape == (3, 20, 30)
    assert table.target(0)["boxes"].shape == (0, 4)
    assert len(ImageFolder([str(tmp_path)]).read()) == 3
    with pytest.raises(InputError, match="no image to predict on"):
        ImageFolder([]).read()
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="void: no image in this folder"):
        ImageFolder([str(tmp_path / "void")]).read()
    with pytest.raises(InputError, match=r"notes.txt: not an image"):
        ImageFolder([str(tmp_path / "notes.txt")]).read()
    with pytest.raises(InputError, match=r"gone.png: image file is missing"):
        ImageFolder([str(tmp_path / "gone.png")]).read()


def test_suffixes_are_those_of_images_that_pillow_opens(tmp_path):
    assert {".jpg", ".jfif", ".jpe", ".png", ".tif", ".webp", ".avif", ".jp2", ".bmp", ".tga"} <= SUFFIXES
    assert not {".pdf", ".mpg", ".eps", ".ps", ".h5", ".hdf", ".fits", ".wmf", ".emf", ".fli", ".txt"} & SUFFIXES
    names = ["a.jfif", "b.JPE", "c.AVIF", "d.qoi", "e.TGA", "f.jp2", "g.Webp", "h.pbm"]
    for name in names:
        image = photo().convert("1") if name.endswith("pbm") else photo()
        image.save(tmp_path / name)
    (tmp_path / "i.pdf").touch()
    assert [path.name for path in list_images(tmp_path)] == names
    assert len(ImageFolder([str(tmp_path)]).read()) == 8


def test_folders_behind_symbolic_links_are_entered_once(tmp_path):
    photo().save(tmp_path / "pool.png")
    (tmp_path / "data/b/deep").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    photo().save(tmp_path / "data/b/deep/1.png")
    photo().save(tmp_path / "far/2.png")
    links = {
        "data/a": "data/b",
        "data/far": "far",
        "far/back": "data",
        "data/b/deep/loop": "data",
        "data/3.png": "pool.png",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "data/gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data/gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in list_images(tmp_path / "data")]
    assert found == ["3.png", "b/deep/1.png", "far/2.png"]
    assert len(ImageFolder([str(tmp_path / "data")]).read()) == 3
    (tmp_path / "link").symlink_to(tmp_path / "far")
    assert [path.name for path in list_images(tmp_path / "link")] == ["2.png", "3.png", "1.png"]


def test_shared_case_of_suffixes():
    folder = SHARED_CASES / "c14_extensions" / "images"
    if not folder.exists():
        pytest.skip("../shared/cases/c14_extensions is absent")
    source = ImageFolder([str(folder)])
    table = source.read()
    assert len(table) == 12
    assert all(source.load_image(table, index).shape[0] == 3 for index in range(12))


def test_reading_16_bit_images_that_use_fewer_bits_is_a_warning(tmp_path):
    for number, bits in ((1, 12), (2, 12), (3, 16)):
        pixels = np.full((8, 8), (1 << bits) - 1, np.uint16)
        PILImage.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png", "width": 8, "height": 8} for number in (1, 2, 3)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "bolt"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.warns(DataWarning, match=r"2 of 3 16-bit images of a sample use fewer bits .*/1.png \(12 bits\)"):
        Coco(str(tmp_path / "a.json"), str(tmp_path)).read()
