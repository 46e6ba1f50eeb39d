"""Runs the whole example: builds the repository, starts a server, transcribes a recording, stops the server.

    python demo.py              a built-in melody whose notes are known
    python demo.py song.ogg     your own file

The exit status is 0 if everything succeeded, including the server's shutdown, and the melody's F1 is >= 0.85.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_repository import build

import backline
from backline.client import Client
from backline.client.errors import Unavailable

_HERE = Path(__file__).parent
_LOG = Path("build/server.log")
_REPOSITORY = Path("build/models")
_REQUIRED_F1 = 0.85
_START_SECONDS = 60
_STOP_SECONDS = 15


class DemoError(Exception):
    """The server failed; the message says how, for the user."""


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
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _server() -> Iterator[str]:
    """Runs `backline serve` on free ports until the block ends; yields its URL once ready."""
    http, grpc, metrics = _free_ports(3)
    command = [
        str(Path(sys.executable).with_name("backline")),
        "serve",
        str(_REPOSITORY),
        "--host",
        "127.0.0.1",
    ]
    command += ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    _LOG.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _LOG.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{http}"
        _wait_until_ready(process, url)
        print(
            f"server       {url} (gRPC {grpc}, metrics {metrics}),"
            f" ready after {time.monotonic() - started:.2f} s, process {process.pid}",
            flush=True,
        )
        yield url
    finally:
        _stop(process)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with backline.connect(url, retries=0) as client:
        while not _is_ready(client):
            if time.monotonic() > deadline:
                raise DemoError(f"the server was not ready within {_START_SECONDS} s. {_last_words()}")
            try:
                status = process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise DemoError(f"the server exited with status {status} during startup. {_last_words()}")


def _is_ready(client: Client) -> bool:
    try:
        if client.ready():
            return True
        failed = [
            f"{model.name}: {model.reason}"
            for model in client.models()
            if model.state == "UNAVAILABLE" and model.reason
        ]
    except Unavailable:  # it is not listening yet
        return False
    if failed:
        raise DemoError(f"a model could not be loaded: {'; '.join(failed)}")
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stops the server with SIGTERM. Raises DemoError if it hangs or exits with a status other than 0."""
    started = time.monotonic()
    process.terminate()
    try:
        status = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise DemoError(
            f"the server did not stop within {_STOP_SECONDS} s of SIGTERM and was killed. {_last_words()}"
        ) from None
    if status != 0:
        raise DemoError(f"the server exited with status {status} after SIGTERM. {_last_words()}")
    print(f"server       stopped by SIGTERM after {time.monotonic() - started:.2f} s, status {status}")


def _last_words() -> str:
    lines = _LOG.read_text(errors="replace").strip().splitlines()
    return (
        "\n".join([f"Its log ({_LOG}) ends with:", *(f"    {line}" for line in lines[-15:])])
        if lines
        else f"Its log ({_LOG}) is empty."
    )


if __name__ == "__main__":
    sys.exit(main())
