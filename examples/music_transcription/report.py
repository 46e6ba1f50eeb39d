"""Formats what the application prints."""

from __future__ import annotations

from collections.abc import Sequence

from audio import Recording
from network import Heard
from notes import Note
from score import Score
from speech import Speech

_COLUMNS = 3
_HEADING = f"{'time':>8}  {'note':<4} {'MIDI':>4} {'length':>7} {'strength':>8}"
_BETWEEN = "  |  "


def audio_line(recording: Recording) -> str:
    channels = {1: "mono", 2: "stereo"}.get(recording.file_channels, f"{recording.file_channels} channels")
    return (
        f"{recording.seconds:.2f} s of {recording.file_format}, {recording.file_rate} Hz {channels},"
        f" analysed at {recording.rate} Hz mono"
    )


def heard_line(heard: Heard, audio_seconds: float) -> str:
    factor = heard.seconds / audio_seconds
    return (
        f"{_count(heard.windows, 'window')} of 1.99 s, {_count(heard.in_flight, 'request')} in flight:"
        f" {heard.seconds:.2f} s, "
        f"{1 / factor:.3g} times real time (real-time factor {factor:.4f})"
    )


def speech_line(speech: Speech, seconds: float) -> str:
    if speech.share < 0.02:
        said = f"no speech (highest probability in 32 ms: {speech.probability.max():.2f})"
    else:
        said = f"speech in {speech.share:.0%} of the recording"
    return (
        f"{said}; {_count(speech.requests, 'request')}, each with the previous one's state: {seconds:.2f} s"
    )


def note_lines(found: Sequence[Note], score: Score | None, most: int) -> list[str]:
    """Returns the first `most` notes in columns, to be read downwards. An x marks notes that the score counts
    as false.
    """
    if not found:
        return ["no notes were found"]
    right = set(range(len(found))) if score is None else {index for _, index in score.pairs}
    cells = [
        f"{note.start:7.2f}s  {note.name:<4} {note.midi:>4} {note.length:6.2f}s {note.strength:8.2f}"
        f"{' ' if index in right else 'x'}"
        for index, note in enumerate(found[:most])
    ]
    height = -(-len(cells) // _COLUMNS)
    columns = [cells[top : top + height] for top in range(0, len(cells), height)]
    lines = [_BETWEEN.join(f"{_HEADING} " for _ in columns)]
    lines += [_BETWEEN.join(column[row] for column in columns if row < len(column)) for row in range(height)]
    if len(found) > most:
        lines.append(f"... and {len(found) - most} more, in the MIDI file (--notes {len(found)} lists them)")
    return lines


def score_lines(true: Sequence[Note], score: Score) -> list[str]:
    caught = {index for index, _ in score.pairs}
    missed = [f"{note.name} at {note.start:.2f} s" for index, note in enumerate(true) if index not in caught]
    right, extra = len(score.pairs), score.found_count - len(score.pairs)
    lines = [
        (
            f"{right} of {score.true_count} true notes were found (same pitch, onset within 50 ms),"
            f" and {extra} false ones"
        )
    ]
    if missed:
        lines.append(f"missed: {', '.join(missed)}")
    lines.append(f"precision {score.precision:.3f}   recall {score.recall:.3f}   F1 {score.f1:.3f}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
