"""Draws the piano roll: the network's output, the notes found, and the true notes if known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audio import Recording
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from notes import LOWEST_MIDI, Note
from score import Score
from windows import FRAME_RATE

_INK, _FAINT, _LINE, _DARK_ROW = "#1f2933", "#7b8794", "#dfe4ea", "#f2f5f8"
_FOUND, _EXTRA, _MISSED, _SEEN = "#0f8b8d", "#e07a1f", "#c81d4e", "#a9dcd8"
_HEAT = LinearSegmentedColormap.from_list("heat", [(1, 1, 1, 0), _SEEN, "#7cc7c3"])
_BLACK_KEYS = frozenset((1, 3, 6, 8, 10))
_SECONDS_A_ROW = 13.0
_MOST_ROWS = 9
_WIDTH = 17.0
_KEY_HEIGHT = 0.135  # inches


@dataclass(frozen=True, slots=True)
class Transcription:
    """The data that the picture shows.

    `sounding` is the network's output [frames, 88]. `true` and `score` are set only if the notes are known.
    """

    title: str
    recording: Recording
    sounding: np.ndarray
    found: Sequence[Note]
    true: Sequence[Note] = ()
    score: Score | None = None


def draw(path: Path, music: Transcription) -> None:
    """Writes a PNG with the waveform and a piano roll below it, in several lines like a score.

    Only the first two minutes of a long recording are drawn.
    """
    seconds = music.recording.seconds
    rows = min(max(math.ceil(seconds / _SECONDS_A_ROW - 0.02), 1), _MOST_ROWS)
    span = min(seconds / rows, _SECONDS_A_ROW)
    low, high = _range([*music.found, *music.true])
    roll_height, wave_height = (high - low + 1) * _KEY_HEIGHT, 0.55
    gap, top, bottom, left, right = 0.42, 1.05, 0.5, 0.75, 0.2
    height = top + bottom + rows * (roll_height + wave_height) + (rows - 1) * gap
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    place_x, place_width = left / _WIDTH, 1 - (left + right) / _WIDTH
    for row in range(rows):
        base = height - top - row * (roll_height + wave_height + gap) - wave_height - roll_height
        start, end = row * span, (row + 1) * span
        wave = figure.add_axes((place_x, (base + roll_height) / height, place_width, wave_height / height))
        _waveform(wave, music.recording, start, end)
        roll = figure.add_axes((place_x, base / height, place_width, roll_height / height))
        _rows(roll, low, high, start, end)
        _sounding(roll, music.sounding, low, high, start, end)
        _notes(roll, music, start, end)
        keys = figure.add_axes(((left - 0.5) / _WIDTH, base / height, 0.46 / _WIDTH, roll_height / height))
        _keyboard(keys, low, high)
    figure.text(place_x + place_width / 2, 0.12 / height, "seconds", ha="center", fontsize=9, color=_FAINT)
    _heading(figure, music, rows * span, height)
    figure.savefig(path, dpi=110)


def _range(notes: Sequence[Note]) -> tuple[int, int]:
    if not notes:
        return 48, 72
    low, high = min(note.midi for note in notes) - 2, max(note.midi for note in notes) + 2
    return min(low, high - 24), high


def _waveform(axes: Axes, recording: Recording, start: float, end: float) -> None:
    samples = recording.samples[int(start * recording.rate) : int(end * recording.rate)]
    if len(samples):
        blocks = np.array_split(samples, min(1600, len(samples)))
        time = np.linspace(start, start + len(samples) / recording.rate, len(blocks))
        axes.fill_between(
            time,
            [block.min() for block in blocks],
            [block.max() for block in blocks],
            color="#b3bdc9",
            linewidth=0,
        )
    peak = 1.1 * float(np.abs(recording.samples).max()) or 1.0
    axes.set(xlim=(start, end), ylim=(-peak, peak))
    axes.axis("off")


def _rows(axes: Axes, low: int, high: int, start: float, end: float) -> None:
    """Draws a row for each key, shaded for black keys, and a vertical line every second."""
    for midi in range(low, high + 1):
        if midi % 12 in _BLACK_KEYS:
            axes.axhspan(midi - 0.5, midi + 0.5, color=_DARK_ROW, linewidth=0, zorder=0)
        if midi % 12 in (0, 5):  # no black key between B and C, or E and F
            axes.axhline(midi - 0.5, color=_LINE, linewidth=0.8, zorder=1)
    seconds = np.arange(math.ceil(start), end + 0.001)
    axes.set_xticks(seconds, [f"{second:g}" for second in seconds], fontsize=8.5, color=_FAINT)
    axes.set_yticks([])
    axes.grid(axis="x", color=_LINE, linewidth=0.8, zorder=1)
    axes.set_axisbelow(True)
    axes.set(xlim=(start, end), ylim=(low - 0.5, high + 0.5))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_color(_LINE)


def _keyboard(axes: Axes, low: int, high: int) -> None:
    """Draws a piano keyboard at the left edge of the rows."""
    axes.set(xlim=(0, 1), ylim=(low - 0.5, high + 0.5))
    axes.axis("off")
    axes.add_patch(
        Rectangle((0, low - 0.5), 1, high - low + 1, facecolor="white", edgecolor=_FAINT, linewidth=0.8)
    )
    for midi in range(low, high + 1):
        if midi % 12 in _BLACK_KEYS:
            axes.add_patch(Rectangle((0.4, midi - 0.42), 0.6, 0.84, facecolor=_INK, linewidth=0))
            axes.plot((0, 0.4), (midi, midi), color=_FAINT, linewidth=0.5)
        elif midi % 12 in (0, 5) and midi > low:
            axes.plot((0, 1), (midi - 0.5, midi - 0.5), color=_FAINT, linewidth=0.5)
        if midi % 12 == 0:
            axes.text(0.07, midi - 0.05, Note(0, midi, 0, 0).name, fontsize=7, color=_INK, va="center")


def _sounding(axes: Axes, sounding: np.ndarray, low: int, high: int, start: float, end: float) -> None:
    first, last = max(low, LOWEST_MIDI), min(high, LOWEST_MIDI + sounding.shape[1] - 1)
    axes.imshow(
        sounding[:, first - LOWEST_MIDI : last - LOWEST_MIDI + 1].T,
        cmap=_HEAT, vmin=0.12, vmax=0.9, aspect="auto", origin="lower", interpolation="nearest",
        extent=(0, len(sounding) / FRAME_RATE, first - 0.5, last + 0.5), zorder=2,
    )  # fmt: skip
    axes.set(xlim=(start, end), ylim=(low - 0.5, high + 0.5))


def _notes(axes: Axes, music: Transcription, start: float, end: float) -> None:
    right = {index for _, index in music.score.pairs} if music.score else set(range(len(music.found)))
    caught = {index for index, _ in music.score.pairs} if music.score else set()
    inches_a_second = axes.get_position().width * _WIDTH / (end - start)
    for index, note in enumerate(music.found):
        if note.end > start and note.start < end:
            _box(axes, note, _FOUND if index in right else _EXTRA, inches_a_second)
    for index, note in enumerate(music.true):
        if index in caught:
            _frame(axes, note, edgecolor=_INK, linewidth=0.8, zorder=4)
        else:
            _frame(axes, note, edgecolor=_MISSED, linewidth=1.6, linestyle=(0, (2.5, 1.2)), zorder=5)


def _box(axes: Axes, note: Note, colour: str, inches_a_second: float) -> None:
    alpha = 0.35 + 0.65 * min(note.strength / 0.8, 1)
    axes.add_patch(
        Rectangle(
            (note.start, note.midi - 0.38),
            note.length,
            0.76,
            facecolor=colour,
            alpha=alpha,
            linewidth=0,
            zorder=3,
        )
    )
    axes.plot(
        (note.start, note.start), (note.midi - 0.38, note.midi + 0.38), color="white", linewidth=1, zorder=3.5
    )  # separates repeated notes
    if note.length * inches_a_second > 0.3:  # otherwise the name does not fit
        left, middle = note.start + 0.05 / inches_a_second, note.midi - 0.05
        axes.text(left, middle, note.name, fontsize=6.3, color="white", va="center", zorder=6, clip_on=True)


def _frame(axes: Axes, note: Note, **look: Any) -> None:
    axes.add_patch(Rectangle((note.start, note.midi - 0.47), note.length, 0.94, facecolor="none", **look))


def _heading(figure: Figure, music: Transcription, shown: float, height: float) -> None:
    seconds, score = music.recording.seconds, music.score
    facts = [f"{seconds:.1f} seconds", f"{len(music.found)} notes found"]
    if shown < seconds - 0.5:
        facts.append(f"the first {shown:.0f} seconds shown")
    key = [Patch(facecolor=_FOUND, label="found (darker is stronger)")]
    if score:
        facts += [f"precision {score.precision:.3f}", f"recall {score.recall:.3f}", f"F1 {score.f1:.3f}"]
        key = [
            Patch(facecolor=_FOUND, label=f"found, true ({len(score.pairs)})"),
            Patch(facecolor=_EXTRA, label=f"found, false ({score.found_count - len(score.pairs)})"),
            Patch(
                facecolor="none",
                edgecolor=_MISSED,
                linewidth=1.6,
                linestyle="--",
                label=f"missed ({score.true_count - len(score.pairs)})",
            ),
            Patch(facecolor="none", edgecolor=_INK, label=f"true ({score.true_count})"),
        ]
    key.append(Patch(facecolor=_SEEN, label="network output"))
    margin = 0.25 / _WIDTH
    figure.text(
        margin, 1 - 0.42 / height, music.title, fontsize=19, fontweight="bold", color=_INK, va="center"
    )
    figure.text(margin, 1 - 0.78 / height, "   ·   ".join(facts), fontsize=10.5, color=_FAINT, va="center")
    figure.legend(
        handles=key, loc="center right", bbox_to_anchor=(1 - 0.1 / _WIDTH, 1 - 0.45 / height),
        ncols=len(key), frameon=False,
        fontsize=9.5, labelcolor=_INK,
    )  # fmt: skip
