"""The type hint for images."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from backline.model.hints import DECODED_LIMIT, Array, OrNone, library
from backline_client.values.errors import InvalidArgument

#: The formats that are decoded. Pillow supports more, but decodes some of those with external programs.
_READ: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_WRITTEN: Final = ("PNG", "JPEG", "WEBP")
#: The exceptions, apart from Pillow's own, that Pillow raises for a file that it cannot decode.
_UNREADABLE: Final = (OSError, SyntaxError, ValueError, EOFError, OverflowError)
_JPEG: Final = ("JPEG", "MPO")
#: The scans of a JPEG file, each of which goes over all pixels however few bytes it has. Encoders write about
#: ten.
_MOST_SCANS: Final = 100
#: A marker of a JPEG file that begins a segment: not one of those that stand alone (ITU-T T.81, table B.1).
_SEGMENT: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_SCAN: Final = b"\xda"
_END: Final = b"\xd9"
#: The compressions of TIFF files, and by number of BMP files, that are decoded. Others take time or memory
#: out of proportion: LZMA, JPEG with any number of scans in each of many parts, and the run lengths of BMP,
#: which Pillow decodes in Python.
_PACKINGS: Final = (
    "raw",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "packbits",
    "group3",
    "group4",
    "tiff_ccitt",
    0,  # none
    3,  # none, with masks for the channels
)
#: The rows that are converted to an array at a time.
_STRIP: Final = 128
_CHANNELS: Final = {"RGB": 3, "RGBA": 4, "L": 0}


@dataclass(frozen=True, slots=True)
class ImageHint(OrNone):
    """A hint for an image, which is an array in the Pillow mode `mode`, or a Pillow image if `as_object` is
    set. `format` is the file format of an output; if it is empty, the output is a PNG file.
    """

    kind: ClassVar[str] = "image"
    mode: str = "RGB"
    format: str = ""
    as_object: bool = False

    def check(self, *, output: bool) -> None:
        """Checks the hint, as described in Media.check."""
        _pillow()
        if self.format and not output:
            raise InvalidArgument(
                f"only outputs take a format: remove '{self.format}'; an input may be any of"
                f" {', '.join(_READ)}"
            )

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> Any:
        """Decodes the first image in a file and rotates the image as its EXIF orientation says. Returns a
        UINT8 array [height, width, channels], or [height, width] for greyscale ("L"). Returns a Pillow image
        instead if `as_object` is set.
        """
        pillow = _pillow()
        try:
            with pillow.open(io.BytesIO(data), formats=_READ) as image:
                size = image.width * image.height * self._bytes_per_pixel(image)
                if size > limit:
                    raise InvalidArgument(
                        f"the image of {image.width} x {image.height} pixels takes {size} bytes of memory to"
                        f" decode, more than {limit}: send a smaller image, or raise the model's"
                        " decoded_limit_bytes"
                    )
                if image.format in _JPEG and _scans(data) > _MOST_SCANS:
                    raise InvalidArgument(
                        f"the image cannot be decoded: it has more than {_MOST_SCANS} scans, each of which"
                        " takes as long as the whole image; save it with fewer"
                    )
                packing = image.info.get("compression", "raw")
                if packing not in _PACKINGS:
                    raise InvalidArgument(
                        f"the image cannot be decoded: its compression {packing} is not one of"
                        f" {', '.join(map(str, _PACKINGS))}; save it as PNG"
                    )
                image.load()
                library("PIL.ImageOps", "an image", "Pillow", "image").exif_transpose(image, in_place=True)
                return image if self.as_object else self._array(image)
        except (*_UNREADABLE, pillow.DecompressionBombError) as error:
            unknown = isinstance(error, pillow.UnidentifiedImageError)
            reason = f"it is none of {', '.join(_READ)}" if unknown else str(error)
            raise InvalidArgument(f"the image cannot be decoded: {reason}") from None

    def _bytes_per_pixel(self, image: Any) -> int:
        """Returns the bytes of memory per pixel that decoding takes at most, with all copies."""
        stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;") else 4
        # A rotated image is a copy, and so is what the model gets.
        size = stored * 3 if self.as_object else stored + max(stored, _CHANNELS[self.mode], 1)
        if image.format == "WEBP":  # libwebp has two canvases, its own pixels, and a copy for Pillow
            size += 16
        if image.info.get("progressive"):  # libjpeg keeps the coefficients of all scans
            size += 2 * len(image.getbands())
        return size

    def _array(self, image: Any) -> np.ndarray:
        """Converts an image in strips, so that there is no other copy of the whole image."""
        channels = _CHANNELS[self.mode]
        array = np.empty((image.height, image.width, *([channels] if channels else [])), np.uint8)
        for top in range(0, image.height, _STRIP):
            strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
            array[top : top + _STRIP] = _in_eight_bits(strip).convert(self.mode)
        return array

    def encode(self, value: Any) -> bytes:
        """Encodes an array or a Pillow image as a file."""
        pillow = _pillow()
        if not isinstance(value, pillow.Image):
            value = pillow.fromarray(self._checked(value))
        content = io.BytesIO()
        try:
            value.save(content, format=self.format or "PNG")
        except OSError as error:
            raise ValueError(f"the image cannot be written as {self.format or 'PNG'}: {error}") from None
        return content.getvalue()

    def _checked(self, value: Any) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
            kind = (
                f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            )
            raise TypeError(f"an image must be an array of uint8 or a Pillow image, got {kind}")
        channels = _CHANNELS[self.mode]
        if value.shape[2:] != ((channels,) if channels else ()) or value.ndim < 2 or not value.size:
            raise ValueError(
                f"an image in {self.mode} has the shape [height, width{f', {channels}' if channels else ''}],"
                f" got {list(value.shape)}"
            )
        return np.ascontiguousarray(value)


class Image(Array):
    """An image, sent as a file (PNG, JPEG, WebP, GIF, BMP, TIFF) and passed to the model as a UINT8 array
    [height, width, 3].

    `Image["L"]` is a greyscale image, [height, width]; `Image["RGBA"]` has 4 channels. An output becomes a
    PNG file, or a JPEG file with `Image["RGB", "JPEG"]`. With the hint `PIL.Image.Image` the model gets and
    returns Pillow images. `Image["RGB"].decode(data)` returns the array that a model would get.
    """

    def __class_getitem__(cls, given: str | tuple[str, str]) -> Any:
        mode, format = given if isinstance(given, tuple) else (given, "")
        if mode not in _CHANNELS or format not in ("", *_WRITTEN):
            raise TypeError(
                f"Image[{given!r}]: expected one of {', '.join(_CHANNELS)}, and optionally the file format of"
                f" an output, one of {', '.join(_WRITTEN)}"
            )
        return ImageHint(mode, format)


def image_hint(hint: Any) -> ImageHint | None:
    """Returns the ImageHint for an image hint, including Pillow's Image class; None for any other hint."""
    if isinstance(hint, ImageHint):
        return hint
    if hint is Image:
        return ImageHint()
    if isinstance(hint, type) and hint.__module__ == "PIL.Image" and hint.__name__ == "Image":
        return ImageHint(as_object=True)
    return None


def _pillow() -> Any:
    return library("PIL.Image", "an image", "Pillow", "image")


def _scans(data: bytes) -> int:
    """Counts the scans of a JPEG file, up to one more than are allowed. Finds the segments as libjpeg does,
    which skips what does not belong to any.
    """
    scans = at = 0
    while scans <= _MOST_SCANS and (found := _SEGMENT.search(data, at)) and found[1] != _END:
        scans += found[1] == _SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _in_eight_bits(image: Any) -> Any:
    """Scales 16-bit channels to 8 bits: Pillow's own conversion would clip all values above 255."""
    if not image.mode.startswith("I"):
        return image
    return _pillow().fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
