"""The key of a recording: the one among 24 keys whose profile best fits the recording's pitch classes.

The profiles are Temperley's ("What's Key for Key?", Music Perception 17, 1999): how much each pitch class
belongs to a key.
"""

from __future__ import annotations

import numpy as np

from backline.model import Audio

_RATE = 11_025
_FRAME = 8192
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_PROFILES = {
    "major": (5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0),
    "minor": (5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0),
}


def predict(recording: Audio[_RATE]) -> dict:
    classes = _pitch_classes(recording)
    fits = {
        f"{name} {mode}": float(np.corrcoef(classes, np.roll(profile, tonic))[0, 1])
        for mode, profile in _PROFILES.items()
        for tonic, name in enumerate(_NAMES)
    }
    best = max(fits, key=fits.__getitem__)
    return {"key": best, "fit": round(fits[best], 3)}


def _pitch_classes(samples: np.ndarray) -> np.ndarray:
    """Returns how much of each pitch class from C to B the recording has, float64 [12]."""
    padded = np.pad(samples, (0, _FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[:: _FRAME // 2]
    loudness = np.abs(np.fft.rfft(frames * np.hanning(_FRAME))).sum(axis=0)
    frequency = np.fft.rfftfreq(_FRAME, 1 / _RATE)
    audible = (frequency > 60) & (frequency < 1000)
    midi = np.round(69 + 12 * np.log2(frequency[audible] / 440)).astype(int)
    # A small amount is added to every pitch class, so that silence gives no key rather than an undefined one.
    return np.bincount(midi % 12, loudness[audible], minlength=12) + 1e-9 * np.arange(12)
