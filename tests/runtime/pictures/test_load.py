"""Pictures of every kind become the same pixels; damaged ones are named."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image

from chan_rt.runtime.contract import Preprocess
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.pictures.load import list_pictures, load_pixels, open_picture
from chan_rt.runtime.pictures.received import decode_picture

SPEC = Preprocess(size=8, mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 2.0), grid=2)
IDENTITY = Preprocess(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), grid=2)


def corner_marked(mode: str = "RGB") -> Image.Image:
    """8 x 8 black with a red top left quarter."""
    image = Image.new("RGB", (8, 8))
    image.paste((255, 0, 0), (0, 0, 4, 4))
    return image.convert(mode)


def test_pixels_are_scaled_and_normalized_by_channel() -> None:
    image = Image.new("RGB", (8, 8), (255, 51, 0))
    pixels = load_pixels([image], SPEC)
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0, :, 3, 5], [(1 - 0.5) / 0.5, (0.2 - 0.25) / 0.25, -0.125 / 2.0], rtol=1e-6)


def test_rows_are_rows_of_the_picture() -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))
    pixels = load_pixels([image], IDENTITY)
    assert pixels[0, :, :4].min() == 1
    assert pixels[0, :, 4:].max() == 0


def test_other_shapes_are_squeezed_without_cropping() -> None:
    wide = Image.new("RGB", (64, 16))
    wide.paste((0, 255, 0), (48, 0, 64, 16))
    pixels = load_pixels([wide], IDENTITY)[0, 1]
    assert pixels[:, 7].min() > 0.95
    assert pixels[:, :5].max() < 0.05


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = load_pixels([image], IDENTITY)
    np.testing.assert_array_equal(pixels[0, :, 0, 7], [1, 1, 1])
    np.testing.assert_array_equal(pixels[0, :, 0, 0], [0, 0, 1])


def test_half_transparent_is_half_white() -> None:
    pixels = load_pixels([Image.new("RGBA", (8, 8), (0, 0, 0, 128))], IDENTITY)
    np.testing.assert_allclose(pixels, 127 / 255, atol=1 / 255)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 51 * 257, np.uint16))
        expected = 51 / 255
    else:
        image = Image.new("L", (8, 8), 255).convert(mode)
        expected = 1.0
    np.testing.assert_allclose(load_pixels([image], IDENTITY), np.full((1, 3, 8, 8), expected), atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((8, 8), 0.5, np.float32), "has floating-point pixels, whose range is not known: save it with 8 or 16"),
        (np.full((8, 8), 200, np.float32), "has floating-point pixels"),
        (np.full((8, 8), 1 << 20, np.int32), "must have pixels from 0 to 65535, got 1048576 to 1048576"),
        (np.full((8, 8), -1, np.int32), "must have pixels from 0 to 65535, got -1 to -1"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    """Pillow would clip them: floating-point numbers from 0 to 1 would be a black picture."""
    image = Image.fromarray(pixels)
    image.save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match=f"^a picture {message}"):
        load_pixels([image], IDENTITY)
    with pytest.raises(InputError, match=f"x.tiff {message}"):
        load_pixels([tmp_path / "x.tiff"], IDENTITY)


def test_palette_with_transparent_color_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "p.png", transparency=0)
    assert load_pixels([tmp_path / "p.png"], IDENTITY).min() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corner_marked() if orientation == 1 else corner_marked().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    expected = load_pixels([corner_marked()], IDENTITY)
    np.testing.assert_array_equal(load_pixels([tmp_path / "turned.png"], IDENTITY), expected)
    np.testing.assert_array_equal(load_pixels([str(tmp_path / "turned.png")], IDENTITY), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_formats_agree(suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    path = tmp_path / f"picture.{suffix}"
    image.save(path)
    np.testing.assert_allclose(load_pixels([path], IDENTITY), load_pixels([image], IDENTITY), atol=4 / 255)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_corrupt_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png cannot be read as a picture"):
        load_pixels([path], SPEC)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be read"):
        open_picture(path)


def test_an_open_picture_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-900])
    closed = noise.copy()
    closed.close()
    with Image.open(tmp_path / "cut.png") as cut:  # Pillow has read its head
        for picture in (cut, closed):
            with pytest.raises(InputError, match=r"^a picture cannot be read: "):
                open_picture(picture)
    with pytest.raises(InputError, match=r"^a picture must have a pixel, got 0 x 8"):
        open_picture(Image.new("RGB", (0, 8)))
    with pytest.raises(InputError, match=r"^a picture must be a path or an image of Pillow \(.*\), got ndarray"):
        open_picture(np.asarray(noise))  # type: ignore[arg-type]


def test_a_received_picture_that_is_cut_short_is_named() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "png")
    with pytest.raises(InputError, match=r"^pictures\[0\] cannot be read: "):
        decode_picture(file.getvalue()[:-900], 32, 10_000, "pictures[0]")


def test_missing_file_and_no_pictures_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png"):
        load_pixels([tmp_path / "none.png"], SPEC)
    with pytest.raises(InputError, match="at least one"):
        load_pixels([], SPEC)


def test_list_pictures_searches_folders_in_order_and_names_each_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpeg", "sub/c.webp", "notes.txt"):
        (tmp_path / name).touch()
    found = list_pictures([tmp_path / "b.PNG", tmp_path]).files
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.PNG", "a.jpeg", "sub/c.webp"]


def test_list_pictures_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list_pictures([tmp_path / "none"])
    with pytest.raises(InputError, match="no picture"):
        list_pictures([tmp_path])


# -- files as people have them, and damaged ones

FORMATS: dict[str, dict[str, str]] = {name: {} for name in ("jpg", "png", "webp", "bmp", "tiff", "gif", "avif")}
FORMATS["lzw.tiff"] = {"compression": "tiff_lzw"}


def encoded(name: str) -> bytes:
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(data, {"jpg": "jpeg"}.get(name, name.split(".")[-1]), **FORMATS[name])
    return data.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_that_a_folder_is_searched_for_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / f"picture.{name.upper()}").write_bytes(encoded(name))
    (file,) = list_pictures([tmp_path]).files
    assert open_picture(file).size == (32, 24)
    assert open_picture(file).mode == "RGB"


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=strategies.data())
def test_a_damaged_picture_is_a_picture_or_an_input_error(
    name: str, data: strategies.DataObject, tmp_path: Path
) -> None:
    content = bytearray(encoded(name))
    for _ in range(data.draw(strategies.integers(1, 6))):
        content[data.draw(strategies.integers(0, min(len(content), 400) - 1))] = data.draw(strategies.integers(0, 255))
    check_damaged(content[: data.draw(strategies.integers(0, len(content)))], tmp_path / "damaged")
    check_damaged(content, tmp_path / "damaged")


@pytest.mark.nightly
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_pictures(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    whole = np.frombuffer(encoded(name), np.uint8)
    for _ in range(12_500):  # 100,000 over the formats
        content = whole.copy()
        places = rng.integers(0, rng.choice([40, 400, len(content)]), rng.integers(1, 9)).clip(0, len(content) - 1)
        content[places] = rng.integers(0, 256, len(places))
        check_damaged(content[: rng.integers(0, len(content) + 1)].tobytes(), tmp_path / "damaged")


def check_damaged(content: bytes | bytearray, file: Path) -> None:
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, and reads the picture
        try:
            assert open_picture(file).mode == "RGB"
            return
        except InputError as error:
            message = str(error)
    assert message.startswith(f"{file} ")
    assert "[Errno" not in message


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read(tmp_path: Path) -> None:
    Image.new("1", (16_000, 12_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"bomb\.png cannot be read as a picture: .*192000000 pixels") as caught:
        open_picture(tmp_path / "bomb.png")
    assert str(caught.value).endswith("pixels, and at most 178956970 are read: make it smaller")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "broken link", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    make = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "broken link": lambda: path.symlink_to("nowhere"),
        "loop": lambda: path.symlink_to(path),
    }
    make[kind]()
    reasons = {"fifo": "must be a regular file", "device": "must be a regular file", "folder": "Is a directory"}
    with pytest.raises(InputError, match=rf"picture\.jpg .*{reasons.get(kind, '')}"):
        open_picture(path)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.txt", "sub/c.TXT", "sub/Makefile", "sub/d.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "sub" / "up").symlink_to("..")
    found = list_pictures([tmp_path])
    assert found.files == [tmp_path / "a.png"]
    assert found.passed_over == {".txt": 2, "": 1, ".mp4": 1}
    assert not found.unreadable
