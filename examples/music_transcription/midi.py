"""Writes notes to a MIDI file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mido
from notes import Note

_TICKS_PER_BEAT = 480
_TEMPO = 500_000  # microseconds per beat: 120 beats per minute, 960 ticks per second
_PIANO = 0


def write(path: Path, notes: Iterable[Note]) -> None:
    """Writes the notes as one piano track, with velocities in proportion to their strengths."""
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=_TEMPO),
            mido.Message("program_change", program=_PIANO),
        ]
    )
    now = 0
    for tick, message in sorted(_events(notes), key=lambda event: (event[0], event[1].type == "note_on")):
        track.append(message.copy(time=tick - now))
        now = tick
    file = mido.MidiFile(type=0, ticks_per_beat=_TICKS_PER_BEAT)
    file.tracks.append(track)
    file.save(path)


def _events(notes: Iterable[Note]) -> Iterable[tuple[int, mido.Message]]:
    for note in notes:
        velocity = min(max(round(127 * note.strength), 1), 127)
        start, end = _tick(note.start), _tick(note.end)
        yield start, mido.Message("note_on", note=note.midi, velocity=velocity)
        yield max(end, start + 1), mido.Message("note_off", note=note.midi, velocity=0)


def _tick(seconds: float) -> int:
    return round(mido.second2tick(seconds, _TICKS_PER_BEAT, _TEMPO))
