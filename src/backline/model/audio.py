"""The type hint for sounds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from backline.engine.errors import InvalidArgument
from backline.model.hints import DECODED_LIMIT, Array, OrNone, library
from backline.model.sound_files import read_sound

_WRITTEN: Final = ("WAV", "FLAC", "OGG")


@dataclass(frozen=True, slots=True)
class AudioHint(OrNone):
    """Sound at `rate` samples per second. `format` is an output's file format; empty means WAV."""

    kind: ClassVar[str] = "audio"
    rate: int
    channels: int = 1
    format: str = ""

    def check(self, *, output: bool) -> None:
        """Checks the hint, as described in Media.check."""
        _soundfile(), _soxr()
        if self.format and not output:
            raise InvalidArgument(
                "only outputs take a format; an input may be WAV, FLAC, OGG, MP3, M4A and others:"
                f" leave '{self.format}' out"
            )

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> np.ndarray:
        """Decodes a sound file, mixes its channels and resamples it. Returns FP32 [samples] for one channel,
        else [channels, samples].
        """
        samples, rate = read_sound(data, limit, self.rate, self.channels)
        samples = self._mixed(samples)
        if rate != self.rate and len(samples):
            samples = _soxr().resample(samples, rate, self.rate)
        return np.ascontiguousarray(samples[:, 0] if self.channels == 1 else samples.T)

    def _mixed(self, samples: np.ndarray) -> np.ndarray:
        """Converts samples to the expected number of channels: mixes all channels into one, or copies one
        channel to all. Raises InvalidArgument for any other conversion.
        """
        found = samples.shape[1]
        if found == self.channels:
            return samples
        if self.channels == 1:
            mixed: np.ndarray = samples.mean(axis=1, keepdims=True, dtype=np.float32)
            return mixed
        if found == 1:
            return np.repeat(samples, self.channels, axis=1)
        raise InvalidArgument(f"the sound has {found} channels, expected {self.channels} or 1")

    def encode(self, value: Any) -> bytes:
        """Encodes an array of floats from -1 to 1, [samples] or [channels, samples], as a file with 16-bit
        samples.
        """
        array = np.asarray(value)
        if array.dtype.kind != "f":
            raise TypeError(f"a sound is an array of floats from -1 to 1, got {array.dtype}")
        expected = 1 if self.channels == 1 else 2
        if array.ndim != expected or (expected == 2 and array.shape[0] != self.channels):
            shape = "[samples]" if expected == 1 else f"[{self.channels}, samples]"
            raise ValueError(
                f"a sound with {self.channels} channel{'s' * (expected - 1)} has the shape {shape},"
                f" got {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError("the samples of a sound must be finite, but some are infinite or NaN")
        content = io.BytesIO()
        _soundfile().write(content, array.astype(np.float32).T, self.rate, format=self.format or "WAV")
        return content.getvalue()


class Audio(Array):
    """Sound, sent as a file (WAV, FLAC, OGG, MP3 or another format of libsndfile; with PyAV also M4A, AAC and
    WebM) and passed to the model as an FP32 array.

    `Audio[16000]` is one channel at 16 kHz, [samples]; `Audio[44100, 2]` is two channels, [2, samples]. An
    output becomes a WAV file, or a FLAC file with `Audio[44100, 2, "FLAC"]`. `Audio[16000].decode(data)`
    returns the array that a model would get.
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
    """Returns the AudioHint if `hint` is one, else None. Raises InvalidArgument for Audio without a rate."""
    if hint is Audio:
        raise InvalidArgument("Audio needs a rate, as in Audio[16000]")
    return hint if isinstance(hint, AudioHint) else None


def _soundfile() -> Any:
    return library("soundfile", "a sound", "soundfile", "audio")


def _soxr() -> Any:
    return library("soxr", "a sound", "soxr", "audio")
