"""`backline demo`: serves a small neural network that detects pitch, and uses it to transcribe a melody."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import tempfile
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from backline.cli.numbers import WholeNumber
from backline_client.values.errors import InvalidArgument

#: The name of the model on the server that the demo runs. The network is SwiftF0, from the package swift-f0
#: (MIT licence).
MODEL = "pitch"
_PACKAGE = "swift_f0"
_RATE = 16_000
#: The number of samples from one pitch estimate of the network to the next.
_HOP = 256
#: The first line of the Ode to Joy (Beethoven, 1824, public domain): pitches and lengths in beats.
MELODY = "F#4 1 F#4 1 G4 1 A4 1 A4 1 G4 1 F#4 1 E4 1 D4 1 D4 1 E4 1 F#4 1 F#4 1.5 E4 .5 E4 2"
_BEAT = 60 / 112
#: Seconds of silence between two notes.
_GAP = 0.06
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_CONFIDENT = 0.9
_SHORTEST = 0.08


@dataclass(frozen=True, slots=True)
class HeardNote:
    """A note: its MIDI number, and the times at which it starts and ends, in seconds."""

    midi: int
    start: float
    end: float

    def __str__(self) -> str:
        return f"{_NAMES[self.midi % 12]}{self.midi // 12 - 1}"


@click.command(
    epilog="\b\nExamples:\n  pip install 'backline[demo]' && backline demo\n  backline demo --once"
)
@click.option("--once", is_flag=True, help="Stop after the transcription, instead of serving until Ctrl-C.")
@click.option(
    "--port",
    type=WholeNumber(0, 65535),
    default=0,
    show_default=True,
    help="The port of the server; 0 takes any free port.",
)
def command(once: bool, port: int) -> None:
    """Serve a neural network from an installed package, and use it to transcribe a melody.

    Needs no other files: the network comes with the package swift-f0, and the melody is synthesised.
    """
    began = perf_counter()
    network = _network()
    import backline

    with tempfile.TemporaryDirectory(prefix="backline-demo-") as place:
        version = Path(place) / MODEL / "1"
        version.mkdir(parents=True)
        shutil.copyfile(network, version / "model.onnx")
        _write_example(version.with_name("examples"))
        with backline.serve(place, port=port) as server:
            ready = perf_counter() - began
            played = list(notes())
            sent = perf_counter()
            answer = server.client[MODEL](
                audio=melody(played)[np.newaxis], fmin=np.float32(60), fmax=np.float32(1000)
            )
            took = perf_counter() - sent
            heard = transcribe(answer["pitch"][0], answer["confidence"][0])
            print(f"Serving '{MODEL}', a network of {network.stat().st_size >> 10} KiB, at {server.url}")
            print(f"Played: {' '.join(map(str, played))}")
            print(f"Heard:  {' '.join(map(str, heard))}")
            print(
                f"Ready after {ready:.1f} s, first response after {perf_counter() - began:.1f} s;"
                f" {played[-1].end:.1f} s of music took {took * 1000:.0f} ms"
            )
            if not once:
                print(f"\nTry it:     open {server.url}/#/models/{MODEL}/try?example=melody in a browser")
                print(f"See it:     curl {server.url}/v2/models/{MODEL}")
                print(f"Measure it: backline bench {MODEL} --url {server.url} --input-shape audio:1,16000")
                print("Ctrl-C stops", flush=True)
                signal.sigwait({signal.SIGINT, signal.SIGTERM})


def _network() -> Path:
    """Returns the network's file. Raises InvalidArgument if a package for the demo is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.origin or importlib.util.find_spec("onnxruntime") is None:
        raise InvalidArgument(
            "the demo needs ONNX Runtime and the package swift-f0, which contains a small network:"
            " pip install 'backline[demo]'"
        )
    return Path(found.origin).with_name("model.onnx")


def notes() -> Iterator[HeardNote]:
    """Yields the notes of the melody, with their times."""
    words = MELODY.split()
    start = 0.2
    for pitch, length in zip(words[::2], words[1::2], strict=True):
        end = start + float(length) * _BEAT
        yield HeardNote(12 * (int(pitch[-1]) + 1) + _NAMES.index(pitch[:-1]), start, end - _GAP)
        start = end


def melody(played: Sequence[HeardNote]) -> np.ndarray:
    """Returns the sound of the notes as float32 [samples] at 16 kHz. A note is a sum of decaying partials."""
    samples = np.zeros(int((played[-1].end + 0.3) * _RATE))
    for note in played:
        time = np.arange(int((note.end - note.start) * _RATE)) / _RATE
        frequency = 440.0 * 2 ** ((note.midi - 69) / 12)
        tone = sum(np.sin(2 * np.pi * frequency * k * time) / k**1.5 for k in range(1, 7))
        fade = np.minimum(1.0, np.minimum(time, time[-1] - time) / 0.01)
        first = int(note.start * _RATE)
        samples[first : first + len(time)] += tone * fade * np.exp(-1.5 * time)
    return np.asarray(0.5 * samples / np.abs(samples).max(), np.float32)


def _write_example(folder: Path) -> None:
    """Writes the melody into the model's folder of examples. The console offers the files in this folder as
    inputs.
    """
    folder.mkdir()
    with wave.open(str(folder / "melody.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes((melody(list(notes())) * 32767).astype("<i2").tobytes())
    inputs = {"audio": {"file": "melody.wav"}, "fmin": 60, "fmax": 1000}
    (folder / "melody.json").write_text(json.dumps(inputs))


def transcribe(pitch: np.ndarray, confidence: np.ndarray) -> list[HeardNote]:
    """Returns the notes in a series of pitch estimates. A note is a run of estimates of the same pitch in
    which the network is confident.
    """
    midi = np.where(confidence > _CONFIDENT, np.round(69 + 12 * np.log2(np.maximum(pitch, 1) / 440)), -1)
    heard = []
    at = 0
    for number, run in groupby(midi.astype(int).tolist()):
        length = len(list(run))
        if number >= 0 and length * _HOP / _RATE >= _SHORTEST:
            heard.append(HeardNote(number, at * _HOP / _RATE, (at + length) * _HOP / _RATE))
        at += length
    return heard
