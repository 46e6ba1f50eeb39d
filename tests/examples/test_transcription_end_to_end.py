"""The example as users run it: its commands, a real server, the real networks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from support.server import ServerProcess, serve


def _missing() -> str:
    for package in ("soundfile", "soxr", "mido", "matplotlib", "basic-pitch", "silero-vad"):
        try:
            distribution(package)
        except PackageNotFoundError:
            return package
    return ""


pytestmark = pytest.mark.skipif(
    bool(_missing()), reason=f"{_missing()} is not installed: see the requirements of the example"
)


@pytest.fixture(scope="module")
def models(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's model repository, built by its own script."""
    repository = tmp_path_factory.mktemp("example") / "models"
    subprocess.run(
        [sys.executable, example / "build_repository.py", repository], check=True, stdout=subprocess.DEVNULL
    )
    return repository


@pytest.fixture(scope="module")
def music_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with basic_pitch and silero_vad."""
    with serve(models, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


def _transcribe(
    example: Path, url: str, output: Path, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, example / "transcribe.py", "--url", url, "--output", output, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def melody_run(
    example: Path, music_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The application's output for the known melody, and its output folder."""
    output = tmp_path_factory.mktemp("melody")
    run = _transcribe(example, music_server.url, output)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, output


def test_the_notes_of_the_melody_are_found(melody_run: tuple[str, Path]) -> None:
    printed, _ = melody_run

    f1 = re.search(r"F1 (\d\.\d+)", printed)

    assert f1 is not None, printed
    assert float(f1[1]) >= 0.85


def test_an_instrumental_melody_has_no_speech(melody_run: tuple[str, Path]) -> None:
    assert re.search(r"^silero_vad +no speech", melody_run[0], re.MULTILINE), melody_run[0]


def test_the_midi_file_contains_the_printed_notes(melody_run: tuple[str, Path]) -> None:
    import mido

    printed, output = melody_run
    count = re.search(r"^notes +(\d+)", printed, re.MULTILINE)

    played = [message for message in mido.MidiFile(output / "ode_to_joy.mid") if message.type == "note_on"]

    assert count is not None, printed
    assert len(played) == int(count[1])


def test_the_piano_roll_is_a_png(melody_run: tuple[str, Path]) -> None:
    from matplotlib.image import imread

    height, width, _ = imread(melody_run[1] / "ode_to_joy.png").shape

    assert width > 1000
    assert height > 500


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [("wav", 8_000, 1), ("flac", 48_000, 2), ("ogg", 44_100, 2), ("mp3", 32_000, 1), ("wav", 96_000, 6)],
)
def test_every_file_format_is_transcribed(
    example: Path, music_server: ServerProcess, tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    import numpy as np
    import soundfile

    # One A4: the same note in every format and at every sample rate.
    time = np.arange(2 * rate) / rate
    struck = (
        sum(np.sin(2 * np.pi * 440 * partial * time) / partial**2 for partial in (1, 2, 3))
        * np.exp(-2 * time)
        * (time > 0.5)
        / 2
    )
    path = tmp_path / f"a4 struck.{suffix}"
    soundfile.write(path, np.repeat(struck[:, None], channels, axis=1), rate)

    run = _transcribe(example, music_server.url, tmp_path, path)

    assert run.returncode == 0, run.stderr
    assert re.search(r"\b0\.\d\ds +A4 +69\b", run.stdout), run.stdout


def test_the_demo_starts_and_stops_its_server(example: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, example / "demo.py"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"stopped by SIGTERM after .*, status 0", run.stdout)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"# a text, not a song\n" * 100, "cannot be read as audio"),
        (
            b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x22\x56\0\0\x44\xac\0\0\x02\0\x10\0data\0\0\0\0",
            "without any samples",
        ),
    ],
    ids=["missing", "empty", "text", "no samples"],
)
def test_an_invalid_audio_file_is_refused_in_one_line(
    example: Path, tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "song.wav"
    if content is not None:
        path.write_bytes(content)

    run = _transcribe(example, "http://127.0.0.1:9", tmp_path, path)

    assert run.returncode == 1
    assert run.stderr.startswith(f"transcribe: {path}: ")
    assert complaint in run.stderr
    assert run.stderr.count("\n") == 1


def test_an_unreachable_server_is_reported_in_one_line(example: Path, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"

    run = _transcribe(example, url, tmp_path)

    assert run.returncode == 1
    assert run.stderr.startswith("transcribe: ")
    assert url in run.stderr
    assert run.stderr.count("\n") == 1


def test_rebuilding_the_repository_copies_nothing(example: Path, models: Path) -> None:
    run = subprocess.run(
        [sys.executable, example / "build_repository.py", models], check=True, capture_output=True, text=True
    )

    assert run.stdout.count("up to date") == 2
    assert sorted(path.name for path in models.rglob("*") if path.is_file()) == [
        "LICENSE",
        "LICENSE",
        "melody.wav",
        "model.onnx",
        "model.onnx",
    ]
