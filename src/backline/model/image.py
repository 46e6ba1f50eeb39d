"""The type hint for images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from backline.engine.errors import InvalidArgument
from backline.model.hints import DECODED_LIMIT, Array, OrNone, library

#: The formats that are decoded. Pillow supports more, but decodes some of those with external programs.
_READ: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_WRITTEN: Final = ("PNG", "JPEG", "WEBP")
#: The exceptions, apart from Pillow's own, that Pillow raises for a file that it cannot decode.
_UNREADABLE: Final = (OSError, SyntaxError, ValueError, EOFError, OverflowError)
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
                size = image.width * image.height * max(len(image.getbands()), _CHANNELS[self.mode], 1)
                if size > limit:
                    raise InvalidArgument(
                        f"the image of {image.width} x {image.height} pixels has {size} bytes"
                        f" when it is decoded, more than {limit}: send a smaller image, or raise the model's"
                        " decoded_limit_bytes"
                    )
                image.load()
                upright = library("PIL.ImageOps", "an image", "Pillow", "image").exif_transpose(image)
                if self.as_object:
                    return upright
                return np.array(_in_eight_bits(upright).convert(self.mode))
        except (*_UNREADABLE, pillow.DecompressionBombError) as error:
            unknown = isinstance(error, pillow.UnidentifiedImageError)
            reason = f"it is none of {', '.join(_READ)}" if unknown else str(error)
            raise InvalidArgument(f"the image cannot be decoded: {reason}") from None

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


def _in_eight_bits(image: Any) -> Any:
    """Scales 16-bit channels to 8 bits: Pillow's own conversion would clip all values above 255."""
    if not image.mode.startswith("I"):
        return image
    return _pillow().fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
