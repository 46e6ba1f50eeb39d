"""Image files decode to arrays, arrays encode to files, and invalid or oversized files are refused."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from backline.model import Image
from backline.model.image import ImageHint
from backline_client.values.errors import InvalidArgument

pillow = pytest.importorskip("PIL.Image")
DATA = Path(find_spec("skimage").origin or "").parent / "data" if find_spec("skimage") else Path()
RGB: ImageHint = Image["RGB"]


def content(name: str) -> bytes:
    if not DATA.name:
        pytest.skip("scikit-image is not installed")
    return (DATA / name).read_bytes()


def written(image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("astronaut.png", (512, 512, 3)),
        ("rocket.jpg", (427, 640, 3)),
        ("camera.png", (512, 512, 3)),
        ("coffee.png", (400, 600, 3)),
    ],
)
def test_a_real_file_decodes_to_what_pillow_reads(name: str, shape: tuple[int, ...]) -> None:
    array = RGB.decode(content(name))

    assert array.shape == shape
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.asarray(pillow.open(DATA / name).convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_lossless_formats_decode_exactly(format: str) -> None:
    array = np.zeros((4, 6, 3), np.uint8)
    array[1, 2] = 255
    options = {"lossless": True} if format == "WEBP" else {}

    np.testing.assert_array_equal(RGB.decode(written(pillow.fromarray(array), format, **options)), array)


def test_each_mode_has_its_channels() -> None:
    cat = content("chelsea.png")

    assert Image["L"].decode(cat).shape == (300, 451)
    assert Image["RGBA"].decode(cat).shape == (300, 451, 4)
    assert ImageHint(as_object=True).decode(cat).size == (451, 300)


def test_the_decoded_array_is_writable() -> None:
    array = RGB.decode(content("chelsea.png"))
    array[0, 0] = 0


def test_a_photo_is_rotated_by_its_exif_orientation() -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn

    assert RGB.decode(written(pillow.new("RGB", (20, 10)), "JPEG", exif=exif)).shape == (20, 10, 3)


def test_16_bit_images_are_scaled_to_8_bits() -> None:
    deep = np.array([[0, 256, 65535]], np.uint16)

    np.testing.assert_array_equal(Image["L"].decode(written(pillow.fromarray(deep))), [[0, 1, 255]])


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_an_invalid_image_file_is_refused(data: bytes) -> None:
    with pytest.raises(
        InvalidArgument, match="the image cannot be decoded: it is none of PNG, JPEG, WEBP, GIF, BMP, TIFF"
    ):
        RGB.decode(data)


def test_a_truncated_file_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the image cannot be decoded"):
        RGB.decode(content("chelsea.png")[:5000])


def test_a_small_file_that_decodes_to_a_huge_image_is_refused() -> None:
    bomb = written(pillow.new("1", (12000, 12000)))

    assert len(bomb) < 100_000
    with pytest.raises(
        InvalidArgument,
        match="12000 x 12000 pixels takes 576000000 bytes of memory to decode, more than 536870912",
    ):
        RGB.decode(bomb)
    with pytest.raises(InvalidArgument, match="cannot be decoded"):
        RGB.decode(written(pillow.new("1", (20000, 20000))), 1 << 40)


@pytest.mark.parametrize(
    ("hint", "shape"), [(Image["RGB"], (5, 7, 3)), (Image["RGBA"], (5, 7, 4)), (Image["L"], (5, 7))]
)
def test_an_array_survives_a_round_trip(hint: ImageHint, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    encoded = hint.encode(array)

    assert encoded.startswith(b"\x89PNG")
    np.testing.assert_array_equal(hint.decode(encoded), array)


def test_the_format_of_an_output_is_chosen() -> None:
    assert Image["RGB", "JPEG"].encode(np.zeros((8, 8, 3), np.uint8)).startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((2, 2, 3)), "an array of uint8 .* got an array of float64"),
        ([[0]], "got a list"),
        (np.zeros((2, 2), np.uint8), r"the shape \[height, width, 3\], got \[2, 2\]"),
        (np.zeros((0, 2, 3), np.uint8), r"got \[0, 2, 3\]"),
    ],
)
def test_a_value_that_is_not_an_image_is_not_encoded(value: object, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        RGB.encode(value)


@pytest.mark.parametrize("given", ["CMYK", ("RGB", "EPS"), 3])
def test_a_meaningless_hint_is_an_error(given: object) -> None:
    with pytest.raises(TypeError, match="expected one of RGB, RGBA, L"):
        Image[given]
