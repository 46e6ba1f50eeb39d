"""Decodes audio files to samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

_BLOCK_SECONDS = 10


class AudioError(Exception):
    """Raised when a file cannot be read as audio. The message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Mono samples, float32 [n] in about -1 to 1, at `rate` per second, and the format of their file."""

    samples: np.ndarray
    rate: int
    file_rate: int
    file_channels: int
    file_format: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def at(self, rate: int) -> np.ndarray:
        """Returns the samples resampled to another rate, float32 [m]."""
        return soxr.resample(self.samples, self.rate, rate)


def load(path: Path, rate: int) -> Recording:
    """Decodes WAV, FLAC, OGG, Opus or MP3, mixes the channels down to one and resamples to `rate`.

    The file is decoded block by block, so that even hours of stereo need no more memory than the result.

    Raises AudioError if the file cannot be read or has no samples.
    """
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if path.is_dir():
        raise AudioError(f"{path}: is a directory, not an audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    try:
        with soundfile.SoundFile(path) as file:
            samples = _resampled(file, rate)
            recording = Recording(samples, rate, file.samplerate, file.channels, file.format)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(
            f"{path}: cannot be read as audio, expected WAV, FLAC, OGG, Opus or MP3: {_reason(error)}"
        ) from error
    if not len(recording.samples):
        raise AudioError(f"{path}: is an audio file without any samples")
    if not np.isfinite(recording.samples).all():
        raise AudioError(f"{path}: has samples that are not numbers (NaN or infinity)")
    return recording


def _resampled(file: soundfile.SoundFile, rate: int) -> np.ndarray:
    stream = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
    blocks = [
        stream.resample_chunk(block.mean(axis=1))
        for block in file.blocks(_BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)
    ]
    blocks.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(blocks)


def _reason(error: Exception) -> str:
    # This is libsndfile's message without the path that Python's binding puts in front of it.
    return str(getattr(error, "error_string", error)).rstrip(".").strip()
