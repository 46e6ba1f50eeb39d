"""The tempo of a recording: the period at which its changes repeat, by autocorrelation."""

from __future__ import annotations

import numpy as np

from backline.model import Audio

_RATE = 11_025
_FRAME, _HOP = 1024, 512


def predict(recording: Audio[_RATE]) -> dict:
    changes = _changes(recording)
    power = np.abs(np.fft.rfft(changes - changes.mean(), 2 * len(changes))) ** 2
    repeats = np.fft.irfft(power)[1 : len(changes)]
    tempo = 60 * _RATE / _HOP / np.arange(1, len(changes))
    # Half and double the tempo repeat as well: people hear the one that is closest to 120 beats per minute.
    likely = np.exp(-((np.log2(tempo / 120) / 0.7) ** 2))
    return {"bpm": round(float(tempo[np.argmax(repeats * likely)]), 1)}


def _changes(samples: np.ndarray) -> np.ndarray:
    """Returns how much louder each frame is than the one before it, summed over all frequencies."""
    padded = np.pad(samples, (_FRAME, 2 * _FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    spectrum = np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(_FRAME))))
    return np.maximum(np.diff(spectrum, axis=0), 0).sum(axis=1)
