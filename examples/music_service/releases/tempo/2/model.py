"""The tempo of a recording: the period at which its changes repeat, by autocorrelation.

Version 1 could find only tempos whose period is a whole number of frames of 46 ms each, so that the possible
tempos near 112 beats per minute were 10 apart. This version has frames of 12 ms, and interpolates between
them.
"""

from __future__ import annotations

import numpy as np

from backline.model import Audio

_RATE = 11_025
_FRAME, _HOP = 1024, 128


def predict(recording: Audio[_RATE]) -> dict:
    changes = _changes(recording)
    power = np.abs(np.fft.rfft(changes - changes.mean(), 2 * len(changes))) ** 2
    repeats = np.fft.irfft(power)[: len(changes)]
    tempo = 60 * _RATE / _HOP / np.arange(1, len(changes))
    # Half and double the tempo repeat as well: people hear the one that is closest to 120 beats per minute.
    likely = np.exp(-((np.log2(tempo / 120) / 0.7) ** 2))
    lag = 1 + int(np.argmax(repeats[1:] * likely))
    return {"bpm": round(60 * _RATE / _HOP / (lag + _shift(repeats[lag - 1 : lag + 2])), 1)}


def _shift(around: np.ndarray) -> float:
    """Returns the position of the vertex of the parabola through a peak and its two neighbours, relative to
    the peak.
    """
    if len(around) < 3 or (curve := around[0] - 2 * around[1] + around[2]) >= 0:
        return 0.0
    return float((around[0] - around[2]) / (2 * curve))


def _changes(samples: np.ndarray) -> np.ndarray:
    """Returns how much louder each frame is than the one before it, summed over all frequencies."""
    padded = np.pad(samples, (_FRAME, 2 * _FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    spectrum = np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(_FRAME))))
    return np.maximum(np.diff(spectrum, axis=0), 0).sum(axis=1)
