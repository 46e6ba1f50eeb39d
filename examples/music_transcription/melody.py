"""Plays the Ode to Joy (Beethoven, 1824, public domain) on a synthetic piano, so that its notes are known."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from notes import Note

TITLE, COMPOSER = "Ode to Joy", "Ludwig van Beethoven"
RATE = 44_100
_BEAT = 60 / 112
_LEAD_IN = 0.5
_RING_OUT = 1.5
_GAP = 0.03  # seconds between the release of a key and the next note

# Pitches and their lengths in beats; "-" is a rest.
_THEME = "F#4 1 F#4 1 G4 1 A4 1 | A4 1 G4 1 F#4 1 E4 1 | D4 1 D4 1 E4 1 F#4 1"
_RIGHT = f"""
{_THEME} | F#4 1.5 E4 .5 E4 2
{_THEME} | E4 1.5 D4 .5 D4 2
E4 1 E4 1 F#4 1 D4 1 | E4 1 F#4 .5 G4 .5 F#4 1 D4 1 | E4 1 F#4 .5 G4 .5 F#4 1 E4 1 | D4 1 E4 1 A3 2
{_THEME} | E4 1.5 D4 .5 D4 2
"""
_BASS = "D3+A3 4 | A2+C#4 4 | B2+F#3 2 G2+B3 2"
_LEFT = f"""
{_BASS} | A2+C#4 4
{_BASS} | A2+C#4 2 D3+F#3 2
A2+G3 4 | A2+G3 4 | A2+C#4 2 D3+A3 2 | B2+F#3 2 A2+E3 2
{_BASS} | A2+C#4 2 D3+F#3 2
"""
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def notes() -> list[Note]:
    """Returns the true notes in time order."""
    return sorted([*_voice(_RIGHT, loudness=0.85), *_voice(_LEFT, loudness=0.6)])


def render(path: Path) -> list[Note]:
    """Writes the melody as a stereo WAV file at 44,100 Hz and returns its true notes."""
    melody = notes()
    length = int((max(note.end for note in melody) + _RING_OUT) * RATE)
    left, right = np.zeros(length), np.zeros(length)
    for note in melody:
        tone = _piano_tone(note.midi, round(note.length, 3), note.strength)
        start = round(note.start * RATE)
        tone = tone[: length - start]
        place = (note.midi - 40) / 60  # low notes on the left, where a pianist hears them
        left[start : start + len(tone)] += tone * np.cos(place * np.pi / 2)
        right[start : start + len(tone)] += tone * np.sin(place * np.pi / 2)
    stereo = np.stack((left, right), axis=1)
    soundfile.write(path, 0.8 * stereo / np.abs(stereo).max(), RATE)
    return melody


def _voice(text: str, loudness: float) -> list[Note]:
    words = text.replace("|", " ").split()
    played: list[Note] = []
    beat = 0.0
    for pitches, length in zip(words[::2], words[1::2], strict=True):
        start = _LEAD_IN + beat * _BEAT
        accent = 1.0 if beat % 4 == 0 else 0.9 if beat % 2 == 0 else 0.8
        end = start + float(length) * _BEAT - _GAP
        played += [Note(start, _midi(pitch), end, loudness * accent) for pitch in pitches.split("+")]
        beat += float(length)
    return played


def _midi(pitch: str) -> int:
    return 12 * (int(pitch[-1]) + 1) + _SEMITONES[pitch[0]] + pitch.count("#")


@lru_cache
def _piano_tone(midi: int, held: float, loudness: float) -> np.ndarray:
    """Returns the sound of one key held for `held` seconds, float32 [samples] at 44,100 Hz.

    The sound is a sum of partials and a knock. Stiff strings make the partials slightly sharp; higher
    partials decay faster.
    """
    fundamental = 440 * 2 ** ((midi - 69) / 12)
    time = np.arange(int((held + 0.4) * RATE), dtype=np.float32) / np.float32(RATE)
    random = np.random.default_rng(midi)
    stiffness = 3e-4 * 2 ** ((midi - 60) / 18)
    tone = np.zeros_like(time)
    for partial in range(1, 25):
        frequency = partial * fundamental * np.sqrt(1 + stiffness * partial**2)
        if frequency > 9_000:
            break
        # Striking at an eighth of the string suppresses every eighth partial; soft strokes are darker.
        weight = abs(np.sin(np.pi * partial / 8)) * partial ** -(1.9 - 0.6 * loudness)
        decay = 0.5 + 0.0012 * frequency
        envelope = 0.6 * np.exp(-decay * 2.5 * time) + 0.4 * np.exp(-decay * 0.5 * time)
        angle = np.float32(2 * np.pi * frequency) * time + np.float32(random.uniform(0, 2 * np.pi))
        # two slightly detuned strings beat slowly
        tone += weight * envelope * (np.sin(angle) + 0.5 * np.sin(np.float32(1.0004) * angle))
    knock = random.standard_normal(len(time)) * np.exp(-time / 0.006)
    tone += 0.04 * np.convolve(knock, np.hanning(40) / 20, mode="same")
    attack = np.minimum(time / 0.004, 1)
    damper = np.where(time < held, 1, np.exp(-(time - held) / 0.05))
    return loudness * tone * attack * damper
