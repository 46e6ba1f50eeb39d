"""`backline demo` transcribes its melody with the network from an installed package."""

from __future__ import annotations

import re
from importlib.util import find_spec

import numpy as np
import pytest

from backline.cli.demo import MELODY, melody, notes, transcribe
from cli.conftest import Run


@pytest.mark.skipif(find_spec("swift_f0") is None, reason="swift-f0 is not installed")
def test_the_demo_hears_the_melody_that_it_plays(backline: Run) -> None:
    done = backline("demo", "--once")

    assert done.returncode == 0, done.stderr
    played, heard = re.findall(r"(?:Played|Heard): +(.*)", done.stdout)
    assert heard == played == " ".join(MELODY.split()[::2])


def test_the_melody_has_a_sound_for_each_note() -> None:
    played = list(notes())
    sound = melody(played)

    loud = [np.abs(sound[int(note.start * 16_000) : int(note.end * 16_000)]).max() for note in played]
    assert min(loud) > 0.1
    assert np.abs(sound).max() <= 0.5


def test_short_and_doubtful_estimates_are_no_notes() -> None:
    pitch = np.array([440.0] * 10 + [466.0] * 2 + [440.0] * 10)
    confidence = np.array([1.0] * 12 + [0.5] * 10)

    assert [str(note) for note in transcribe(pitch, confidence)] == ["A4"]
