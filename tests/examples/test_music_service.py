"""The music service: the story that `make music-service` runs, the tutorial, and the application alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from findings import QUESTIONS, analyse

from backline_client.client.errors import BacklineError, DeadlineExceeded, InvalidArgument, Unavailable
from docs.conftest import Workspace, wait_until_loaded
from docs.pages import ROOT, blocks
from support.server import free_ports


def _missing() -> str:
    for package in (
        "fastapi",
        "uvicorn",
        "python-multipart",
        "soundfile",
        "soxr",
        "basic-pitch",
        "silero-vad",
    ):
        try:
            distribution(package)
        except PackageNotFoundError:
            return package
    return ""


needs_packages = pytest.mark.skipif(
    bool(_missing()), reason=f"{_missing()} is not installed: see the requirements of the example"
)


class Story(NamedTuple):
    """What `make music-service` printed, and the folder in which it ran."""

    status: int
    output: str
    folder: Path


@pytest.fixture(scope="module")
def story(service: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    told = subprocess.run(
        [sys.executable, service / "story.py"],
        check=False, cwd=folder, capture_output=True, text=True, timeout=110,
        env={**os.environ, "BACKLINE_ISOLATE": "never"},
    )  # fmt: skip
    return Story(told.returncode, told.stdout + told.stderr, folder)


@needs_packages
def test_the_whole_story_ends_well(story: Story) -> None:
    assert story.status == 0, story.output
    assert re.search(r"^  key +D major \(key 1\)", story.output, re.MULTILINE), story.output
    assert re.search(r"answers +\d+ by tempo 1, \d+ by tempo 2, \d+ by notes 1$", story.output, re.MULTILINE)
    assert re.search(r"^requests +\d+ .*, 0 failed$", story.output, re.MULTILINE)


@needs_packages
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_tutorial_can_be_followed(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_ISOLATE", "never")
    for folder in ("examples", "deploy"):
        (story.folder / folder).symlink_to(ROOT / folder)
    workspace = Workspace(story.folder, *free_ports(3))
    (port,) = free_ports(1)
    text = "\f".join(
        block.text.replace("\\\n", "") for block in blocks("docs/music-service.md") if block.language == "sh"
    )
    make, activate, repository, keys, serve, application, upload, operator, release, undo, *_ = (
        text.replace("localhost:8080", f"localhost:{port}")
        .replace("--port 8080", f"--port {port}")
        .split("\f")
    )
    assert "make music-service" in make
    assert "activate" in activate

    workspace.run_shell(repository + keys)
    with workspace.serving(serve) as server:
        wait_until_loaded(server)
        with _application(workspace, application, port):
            found = json.loads(workspace.run_shell(upload))
            assert {name: finding["model"] for name, finding in found.items()} == {
                "notes": "notes", "key": "key", "tempo": "tempo", "kind": "speech",
            }  # fmt: skip
            assert (found["key"]["value"]["key"], found["tempo"]["version"]) == ("D major", "1")

            assert "1 -> 2" in workspace.run_shell(operator + release)
            tempo = json.loads(workspace.run_shell(upload))["tempo"]
            assert tempo["version"] == "2"
            assert abs(tempo["value"]["bpm"] - 112) < 2

            history = workspace.run_shell(operator + undo)
            assert re.search(r"rollback +tempo +2 -> 1 +stable", history), history
            assert json.loads(workspace.run_shell(upload))["tempo"]["version"] == "1"


@contextmanager
def _application(workspace: Workspace, command: str, port: int) -> Iterator[None]:
    with (workspace.folder / "application.log").open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", workspace.here(command)], cwd=workspace.folder, env=workspace.environment,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/ready", timeout=5).close()
                break
            except OSError:
                told = (workspace.folder / "application.log").read_text()
                assert process.poll() is None, told
                assert time.monotonic() < end, told
                time.sleep(0.05)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@needs_packages
def test_the_application_has_no_runtime_and_no_server_in_it(service: Path) -> None:
    script = "import sys, app; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=service, capture_output=True, text=True, timeout=60
    ).stdout.split()

    assert "fastapi" in modules
    assert not {"onnxruntime", "torch", "soundfile", "backline.server", "backline.backends"} & set(modules)


class Answer(NamedTuple):
    """A stand-in for a model's response."""

    output: dict[str, np.ndarray]
    model_version: str = "1"

    def __getitem__(self, name: str) -> np.ndarray:  # type: ignore[override]
        return self.output[name]


class Models:
    """A stand-in for a client: each model raises its errors in turn, and then answers with its name."""

    def __init__(self, **errors: list[BacklineError]) -> None:
        self.errors = errors
        self.asked: list[str] = []
        self.timeouts: dict[str, float] = {}

    def __getitem__(self, name: str) -> Any:
        async def ask(recording: np.ndarray, timeout: float) -> Answer:
            self.asked.append(name)
            self.timeouts.setdefault(name, timeout)
            await asyncio.sleep(0)
            if self.errors.get(name):
                raise self.errors[name].pop(0)
            return Answer({"output": np.array([name], object)})

        return ask


def found(models: Models) -> dict[str, Any]:
    findings = asyncio.run(analyse(models, b"sound"))  # type: ignore[arg-type]
    return {name: finding.answer() for name, finding in findings.items()}


def test_all_models_are_asked_at_once_each_with_its_deadline() -> None:
    models = Models()

    answer = found(models)

    assert answer["key"] == {"value": "key", "model": "key", "version": "1"}
    assert models.asked == [question.model for question in QUESTIONS.values()]
    assert {name: round(seconds) for name, seconds in models.timeouts.items()} == {
        question.model: question.seconds for question in QUESTIONS.values()
    }


def test_a_busy_model_is_asked_again() -> None:
    models = Models(key=[Unavailable("busy", 0.001)])

    assert found(models)["key"]["value"] == "key"
    assert models.asked.count("key") == 2


def test_a_model_that_stays_busy_costs_only_its_own_part() -> None:
    answer = found(Models(tempo=[Unavailable(f"busy {n}", 0.001) for n in range(9)]))

    assert answer["tempo"] == {"value": None, "model": "tempo", "reason": "busy 2"}
    assert answer["key"]["value"] == "key"


def test_a_late_model_is_replaced_by_its_fallback() -> None:
    answer = found(Models(notes=[DeadlineExceeded("too late")]))

    assert answer["notes"] == {"value": "melody", "model": "melody", "version": "1", "reason": "too late"}


def test_a_file_that_is_no_recording_is_the_callers_error() -> None:
    with pytest.raises(InvalidArgument, match="no sound"):
        found(Models(notes=[InvalidArgument("no sound")]))
