"""Transcribes a recording with two networks on a Backline server. The only part of Backline it needs is the
client.

python transcribe.py song.ogg     transcribes a file
python transcribe.py              transcribes a built-in melody, and counts how many of its notes were found
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import audio
import melody
import midi
import network
import notes
import picture
import report
import score
import speech
import windows

import backline
from backline_client.client import Client
from backline_client.client.errors import BacklineError


@dataclass(frozen=True, slots=True)
class Music:
    """A recording at the network's sample rate, and its true notes if they are known."""

    title: str
    stem: str
    recording: audio.Recording
    true: Sequence[notes.Note] = ()


def main() -> int:
    arguments = _arguments()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        music = _music(arguments.audio, arguments.output)
        with backline.connect(arguments.url) as client:
            return _transcribe(client, music, arguments)
    except (audio.AudioError, OSError) as error:
        print(f"transcribe: {error}", file=sys.stderr)
    except BacklineError as error:
        print(f"transcribe: {arguments.url}: {error}", file=sys.stderr)
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Transcribe the notes in a recording with networks on a Backline server."
    )
    parser.add_argument(
        "audio",
        nargs="?",
        type=Path,
        help="WAV, FLAC, OGG, Opus or MP3; without it, a built-in melody whose notes are known",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument(
        "--in-flight", type=_positive, default=8, help="concurrent requests (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--notes", type=_positive, default=120, help="maximum number of notes to list (default: %(default)s)"
    )
    parser.add_argument(
        "--require-f1",
        type=float,
        default=0.0,
        help="exit with status 1 if F1 of the built-in melody is lower",
    )
    return parser.parse_args()


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got '{text}'")
    return number


def _music(path: Path | None, output: Path) -> Music:
    if path is not None:
        return Music(path.name, path.stem, audio.load(path, windows.SAMPLE_RATE))
    rendered = output / "ode_to_joy.wav"
    true = melody.render(rendered)
    return Music(
        f"{melody.TITLE}, {melody.COMPOSER}", rendered.stem, audio.load(rendered, windows.SAMPLE_RATE), true
    )


def _transcribe(client: Client, music: Music, arguments: argparse.Namespace) -> int:
    recording = music.recording
    server = client.metadata()
    print(f"server       {server.name} {server.version} at {arguments.url}")
    print(f"audio        {music.title}: {report.audio_line(recording)}")

    ask = partial(client["basic_pitch"], outputs=(network.SOUNDING, network.ONSET))
    heard = network.hear(recording.samples, ask, arguments.in_flight)
    print(f"basic_pitch  {report.heard_line(heard, recording.seconds)}")
    started = time.perf_counter()
    said = speech.detect(recording.at(speech.SAMPLE_RATE), client["silero_vad"])
    print(f"silero_vad   {report.speech_line(said, time.perf_counter() - started)}")

    found = notes.decode(heard.sounding, heard.onset, windows.FRAME_RATE)
    result = score.compare(music.true, found) if music.true else None
    print(f"notes        {len(found)}\n")
    print(*report.note_lines(found, result, arguments.notes), sep="\n")
    if result:
        print("", *report.score_lines(music.true, result), sep="\n")

    png, mid = (arguments.output / f"{music.stem}{suffix}" for suffix in (".png", ".mid"))
    picture.draw(
        png, picture.Transcription(music.title, recording, heard.sounding, found, music.true, result)
    )
    midi.write(mid, found)
    print(f"\nwritten      {png} (piano roll) and {mid} (MIDI)")
    if result and result.f1 < arguments.require_f1:
        print(f"transcribe: F1 is {result.f1:.3f}, but {arguments.require_f1} is required", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
