"""Compares found notes with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from notes import Note

ONSET_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Score:
    """How well found notes match the true ones; `pairs` are the indices (true, found) of matching notes."""

    true_count: int
    found_count: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def precision(self) -> float:
        return len(self.pairs) / self.found_count if self.found_count else 0.0

    @property
    def recall(self) -> float:
        return len(self.pairs) / self.true_count if self.true_count else 0.0

    @property
    def f1(self) -> float:
        together = self.true_count + self.found_count
        return 2 * len(self.pairs) / together if together else 0.0


def compare(true: Sequence[Note], found: Sequence[Note], tolerance: float = ONSET_TOLERANCE) -> Score:
    """Matches notes of equal pitch that start within `tolerance` seconds of each other, one to one.

    This is the onset rule of MIREX and mir_eval, which ignores lengths, with pitches rounded to semitones. As
    both lists are in order of time, matching each true note with the earliest note still free finds the
    maximum number of pairs.
    """
    pairs: list[tuple[int, int]] = []
    for midi in {note.midi for note in true}:
        candidates = sorted((note.start, index) for index, note in enumerate(found) if note.midi == midi)
        position = 0
        for start, index in sorted(
            (note.start, index) for index, note in enumerate(true) if note.midi == midi
        ):
            while position < len(candidates) and candidates[position][0] < start - tolerance:
                position += 1
            if position < len(candidates) and candidates[position][0] <= start + tolerance:
                pairs.append((index, candidates[position][1]))
                position += 1
    return Score(len(true), len(found), tuple(sorted(pairs)))
