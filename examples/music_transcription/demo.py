"""Runs the whole example: builds the repository, starts a server, transcribes a recording, stops the server.

    python demo.py              a built-in melody whose notes are known
    python demo.py song.ogg     your own file

The exit status is 0 if everything succeeded, including the server's shutdown, and the melody's F1 is >= 0.85.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_repository import build
from serving import ProcessError, Server

_HERE = Path(__file__).parent
_LOG = Path("build/server.log")
_REPOSITORY = Path("build/models")
_REQUIRED_F1 = 0.85


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Serve two networks, transcribe a recording with them, and stop."
    )
    parser.add_argument(
        "audio",
        nargs="?",
        type=Path,
        help="WAV, FLAC, OGG, Opus or MP3; without it, a built-in melody whose notes are known",
    )
    audio = parser.parse_args().audio
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped as well
    try:
        for line in build(_REPOSITORY):
            print(f"repository   {line}")
        with _server() as url:
            transcribe = [
                sys.executable,
                str(_HERE / "transcribe.py"),
                "--url",
                url,
                "--require-f1",
                str(_REQUIRED_F1),
            ]
            return subprocess.run(
                [*transcribe, "--", *([str(audio)] if audio else [])], check=False
            ).returncode
    except (ProcessError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _server() -> Iterator[str]:
    """Runs a server until the block ends; yields its URL once ready."""
    server = Server(_REPOSITORY, _LOG)
    try:
        print(f"server       {server.wait_ready()}", flush=True)
        yield server.url
    finally:
        print(f"server       {server.stop()}")


if __name__ == "__main__":
    sys.exit(main())
