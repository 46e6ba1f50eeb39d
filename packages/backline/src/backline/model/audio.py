"""The type hint for sounds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from backline.model.hints import DECODED_LIMIT, Array, OrNone, library
from backline.model.sound_files import read_sound
from backline_client.values.errors import InvalidArgument

_WRITTEN: Final = ("WAV", "FLAC", "OGG")


@dataclass(frozen=True, slots=True)
class AudioHint(OrNone):
    """A hint for sound at `rate` samples per second. `format` is the file format of an output; if it is
    empty, the output is a WAV file.
    """

    kind: ClassVar[str] = "audio"
    rate: int
    channels: int = 1
    format: str = ""

    def check(self, *, output: bool) -> None:
        """Checks the hint, as described in Media.check."""
        _soundfile(), _soxr()
        if self.format and not output:
            raise InvalidArgument(
                f"only outputs take a format: remove '{self.format}'; an input may be WAV, FLAC, OGG, MP3,"
                " M4A and others"
            )

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> np.ndarray:
        """Decodes a sound file, and converts it to the hint's rate and number of channels. Returns an FP32
        array: [samples] if the hint has one channel, otherwise [channels, samples].
        """
        samples, _ = read_sound(data, limit, self.rate, self.channels)
        return np.ascontiguousarray(samples[:, 0] if self.channels == 1 else samples.T)

    def encode(self, value: Any) -> bytes:
        """Encodes an array of floats between -1 and 1, [samples] or [channels, samples], as a file: WAV and
        FLAC with 16-bit samples, OGG with Vorbis.
        """
        array = np.asarray(value)
        if array.dtype.kind != "f":
            raise TypeError(f"audio must be an array of floats from -1 to 1, got {array.dtype}")
        expected = 1 if self.channels == 1 else 2
        if array.ndim != expected or (expected == 2 and array.shape[0] != self.channels):
            shape = "[samples]" if expected == 1 else f"[{self.channels}, samples]"
            raise ValueError(
                f"audio with {self.channels} channel{'s' * (expected - 1)} must have the shape {shape},"
                f" got {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError("the samples of a sound must be finite, but some are infinite or NaN")
        content = io.BytesIO()
        _soundfile().write(content, array.astype(np.float32).T, self.rate, format=self.format or "WAV")
        return content.getvalue()


class Audio(Array):
    """Sound, sent as a file and passed to the model as an FP32 array. The file can be WAV, FLAC, OGG, MP3,
    AIFF, AU or CAF; if PyAV is installed, also M4A, AAC and WebM.

    `Audio[16000]` is one channel at 16 kHz, [samples]; `Audio[44100, 2]` is two channels at 44.1 kHz, [2,
    samples]. An output becomes a WAV file, or a FLAC file with `Audio[44100, 2, "FLAC"]`.
    `Audio[16000].decode(data)` returns the array that a model would get.
    """

    def __class_getitem__(cls, given: int | tuple[Any, ...]) -> Any:
        rate, *more = given if isinstance(given, tuple) else (given,)
        channels, format = (*more, *(1, "")[len(more) :]) if len(more) <= 2 else (0, "")
        if not (
            isinstance(rate, int)
            and rate > 0
            and isinstance(channels, int)
            and channels > 0
            and format in ("", *_WRITTEN)
        ):
            raise TypeError(
                f"Audio[{given!r}]: expected a rate, and optionally the number of channels and the file"
                f" format of an output, one of {', '.join(_WRITTEN)}"
            )
        return AudioHint(rate, channels, format)


def audio_hint(hint: Any) -> AudioHint | None:
    """Returns `hint` if it is an AudioHint, otherwise None. Raises InvalidArgument for `Audio` without a
    rate.
    """
    if hint is Audio:
        raise InvalidArgument("Audio needs a rate, as in Audio[16000]")
    return hint if isinstance(hint, AudioHint) else None


def _soundfile() -> Any:
    return library("soundfile", "audio", "soundfile", "audio")


def _soxr() -> Any:
    return library("soxr", "audio", "soxr", "audio")
