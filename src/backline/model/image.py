"""The type hint for images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from backline.engine.errors import InvalidArgument
from backline.model.hints import OrNone
from backline.model.media import DECODED_LIMIT, library

if TYPE_CHECKING:
    _Array = np.ndarray
else:
    _Array = object

#: What is decoded; among Pillow's other formats there are some that start programs.
_READ: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_WRITTEN: Final = ("PNG", "JPEG", "WEBP")
_CHANNELS: Final = {"RGB": 3, "RGBA": 4, "L": 0}


@dataclass(frozen=True, slots=True)
class ImageHint(OrNone):
    """An image as an array of `mode`, or as Pillow's object; `format` is that of the file of an output, "" for PNG."""

    mode: str = "RGB"
    format: str = ""
    as_object: bool = False

    def check(self, *, output: bool) -> None:
        """See Media."""
        _pillow()
        if self.format and not output:
            raise InvalidArgument(
                f"an image of an input is whatever its file is: {' '.join(_READ)}; leave '{self.format}' out"
            )

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> Any:
        """The first image of a file, turned as its camera was held: UINT8 [height, width, channels], or [height, width] for grey ("L")."""
        pillow = _pillow()
        try:
            with pillow.open(io.BytesIO(data), formats=_READ) as image:
                size = image.width * image.height * max(len(image.getbands()), _CHANNELS[self.mode], 1)
                if size > limit:
                    raise InvalidArgument(
                        f"the image of {image.width} x {image.height} pixels has {size} bytes when it is decoded, more than {limit}"
                    )
                image.load()
                upright = library("PIL.ImageOps", "an image", "Pillow", "image").exif_transpose(image)
                if self.as_object:
                    return upright
                return np.array(_in_eight_bits(upright).convert(self.mode))
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            OverflowError,
            pillow.DecompressionBombError,
        ) as error:
            reason = (
                f"it is none of {' '.join(_READ)}"
                if isinstance(error, pillow.UnidentifiedImageError)
                else str(error)
            )
            raise InvalidArgument(f"the image cannot be decoded: {reason}") from None

    def encode(self, value: Any) -> bytes:
        """A file of an array or one of Pillow's images."""
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
            raise TypeError(f"an image is an array of uint8 or one of Pillow's images, got {kind}")
        channels = _CHANNELS[self.mode]
        if value.shape[2:] != ((channels,) if channels else ()) or value.ndim < 2 or not value.size:
            raise ValueError(
                f"an image in {self.mode} has the shape [height, width{f', {channels}' if channels else ''}], got {list(value.shape)}"
            )
        return np.ascontiguousarray(value)


class Image(_Array):
    """An image: a file in the request (PNG, JPEG, WebP, GIF, BMP, TIFF), UINT8 [height, width, 3] in the model.

    `Image["L"]` is grey, [height, width], `Image["RGBA"]` has 4 channels. An output becomes a PNG file, or with `Image["RGB", "JPEG"]` what
    is named. The hint `PIL.Image.Image` gives and takes Pillow's own object. `Image["RGB"].decode(data)` is what a model gets.
    """

    def __class_getitem__(cls, given: str | tuple[str, str]) -> Any:
        mode, format = given if isinstance(given, tuple) else (given, "")
        if mode not in _CHANNELS or format not in ("", *_WRITTEN):
            raise TypeError(
                f"Image[{given!r}]: expected one of {', '.join(_CHANNELS)}, and for an output one of {', '.join(_WRITTEN)}"
            )
        return ImageHint(mode, format)


def image_hint(hint: Any) -> ImageHint | None:
    """What a hint of this module, or Pillow's class, stands for; None for any other."""
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
    """An image whose channels have 16 bits in 8: Pillow's own conversion would cut off all above 255."""
    if not image.mode.startswith("I"):
        return image
    return _pillow().fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
