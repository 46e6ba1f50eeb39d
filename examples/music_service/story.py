"""Runs the whole example: `make music-service`.

The script starts two servers with the same models and one application, and uploads a recording. Then clients
upload repeatedly, while a new version of a model is promoted, a server is killed, and a model is withdrawn.
The exit status is 0 if no request was lost and the answers are right.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import model_repository
import soundfile
from transcription import Process, ProcessError, Server, free_ports, melody
from uploads import Listeners, UploadError, upload

import backline
from backline_client import Client
from backline_client.client.errors import BacklineError

_HERE = Path(__file__).parent
_WORK = Path("build/music_service")
_REPOSITORY = _WORK / "models"
_CLIENTS = 2
_CLIP_SECONDS = 3
#: The number of answers to wait for after each change.
_ANSWERS = 4
_TRUE_TEMPO = 112


class StoryError(Exception):
    """Raised when something did not happen as it should. The message says what."""


class Application(Process):
    """The application, run by uvicorn, which kills itself with SIGTERM once it has shut down."""

    statuses = (0, -signal.SIGTERM)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped as well
    status = 0
    try:
        with ExitStack() as stack:
            try:
                _tell(stack)
            except (StoryError, UploadError, BacklineError) as error:
                # The error is reported now, because an error while the processes stop would hide it.
                status = _failed(error)
    except (ProcessError, OSError) as error:
        status = _failed(error)
    except KeyboardInterrupt:
        status = 130
    return status


def _failed(error: Exception) -> int:
    print(f"music-service: {error}", file=sys.stderr, flush=True)
    return 1


def _tell(stack: ExitStack) -> None:
    # This also removes the labels and the state that an earlier run left.
    shutil.rmtree(_WORK, ignore_errors=True)
    for line in model_repository.build(_REPOSITORY):
        _say("repository", line)
    servers = [_started_server(stack, number) for number in (1, 2)]
    for server in servers:
        _say("server", server.wait_ready())
    with backline.connect(servers[0].url) as operator:
        # From now on, a new version serves requests only when it is promoted.
        operator.promote("tempo", 1)
        url = _started_application(stack, servers)
        _first_recording(url)
        with Listeners(url, _clip(), _CLIENTS) as listeners:
            listeners.wait(lambda seen: seen.requests >= _ANSWERS)
            _new_version(operator, listeners)
            _lost_server(servers[1], listeners)
            _withdrawn_model(operator, listeners)
    _say("requests", f"{listeners.requests} while all this happened, {len(listeners.failures)} failed")
    if listeners.failures:
        raise StoryError(f"a request failed: {listeners.failures[0]}")


def _started_server(stack: ExitStack, number: int) -> Server:
    options = [
        "--model-control-mode",
        "poll",
        "--labels",
        "repository",
        "--state-dir",
        f"{_WORK}/state{number}",
    ]
    server = Server(_REPOSITORY, _WORK / f"server{number}.log", *options)
    stack.callback(_stop, "server", server)
    return server


def _started_application(stack: ExitStack, servers: list[Server]) -> str:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(_HERE), "--port", str(port)]
    models = ",".join(server.url for server in servers)
    application = Application("the application", command, _WORK / "application.log", BACKLINE_URL=models)
    stack.callback(_stop, "application", application)
    while not _responds(f"{url}/ready"):
        application.pause()
    _say("application", f"{url}, ready after {application.age:.2f} s, process {application.process.pid}")
    return url


def _stop(name: str, process: Process) -> None:
    if process.process.poll() is None:
        _say(name, process.stop())


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # the application is not listening yet
        return False


def _first_recording(url: str) -> None:
    recording = _WORK / "ode_to_joy.wav"
    true = melody.render(recording)
    started = time.monotonic()
    found = upload(url, recording)
    took = time.monotonic() - started
    values = {name: finding["value"] for name, finding in found.items()}
    missing = [f"{name}: {found[name]['reason']}" for name, value in values.items() if value is None]
    if missing:
        raise StoryError("; ".join(missing))
    _say(
        "uploaded", f"{recording.name}, {recording.stat().st_size / 1e6:.1f} MB, answered after {took:.2f} s"
    )
    notes = " ".join(note["note"] for note in values["notes"][:8])
    _say("  notes", f"{len(values['notes'])} of {len(true)}, beginning with {notes}", found["notes"])
    _say("  key", values["key"]["key"], found["key"])
    _say("  tempo", f"{values['tempo']['bpm']} beats per minute; {_TRUE_TEMPO} is true", found["tempo"])
    _say("  kind", values["kind"]["kind"], found["kind"])
    heard = values["key"]["key"], values["kind"]["kind"]
    if heard != ("D major", "music") or not 0.9 < len(values["notes"]) / len(true) < 1.1:
        raise StoryError(f"the Ode to Joy is music in D major of {len(true)} notes")


def _clip() -> Path:
    """Returns the first seconds of the recording."""
    samples, rate = soundfile.read(_WORK / "ode_to_joy.wav", frames=_CLIP_SECONDS * melody.RATE)
    clip = _WORK / "clip.flac"
    soundfile.write(clip, samples, rate)
    return clip


def _new_version(operator: Client, listeners: Listeners) -> None:
    model_repository.release(_REPOSITORY, "tempo", "2")
    operator.refresh()
    change = operator.promote("tempo", 2)
    _say(
        "promoted", f"tempo {change.before} -> {change.version}, once for both servers, while clients upload"
    )
    listeners.wait(lambda seen: seen.versions("tempo").get("tempo 2", 0) >= _ANSWERS)
    counts = [
        f"{n} by {version}" for name in ("tempo", "notes") for version, n in listeners.versions(name).items()
    ]
    _say("  answers", ", ".join(counts))
    tempo = listeners.latest["tempo"]
    _say("  tempo", f"{tempo['value']['bpm']} beats per minute; {_TRUE_TEMPO} is true", tempo)
    if abs(tempo["value"]["bpm"] - _TRUE_TEMPO) > 1:
        raise StoryError("version 2 of tempo is no better than version 1")
    if list(listeners.versions("notes")) != ["notes 1"]:
        raise StoryError(f"the version of notes changed: {listeners.versions('notes')}")


def _lost_server(server: Server, listeners: Listeners) -> None:
    requests = listeners.requests
    server.kill()
    listeners.wait(lambda seen: seen.requests >= requests + _ANSWERS)
    _say("killed", f"{server.url}, in the middle of requests: {len(listeners.failures)} of them failed")


def _withdrawn_model(operator: Client, listeners: Listeners) -> None:
    model_repository.withdraw(_REPOSITORY, "notes")
    operator.refresh()
    listeners.wait(lambda seen: "melody 1" in seen.versions("notes"))
    _say("withdrawn", "the model notes: the application falls back to the model melody")


def _say(what: str, text: str, finding: dict[str, Any] | None = None) -> None:
    model = f" ({finding['model']} {finding['version']})" if finding else ""
    print(f"{what:12} {text}{model}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
