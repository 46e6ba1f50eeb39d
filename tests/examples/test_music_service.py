"""The music service: its whole story as `make music-service` runs it, and the application by itself."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from findings import QUESTIONS, analyse

from backline.client.errors import BacklineError, DeadlineExceeded, InvalidArgument, Unavailable


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


@needs_packages
def test_the_whole_story_ends_well(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_ISOLATE", "never")
    told = subprocess.run(
        [sys.executable, service / "story.py"],
        check=False, cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip

    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search(r"^  key +D major \(key 1\)", told.stdout, re.MULTILINE), told.stdout
    assert re.search(r"answers +\d+ by tempo 1, \d+ by tempo 2, \d+ by notes 1$", told.stdout, re.MULTILINE)
    assert re.search(r"^requests +\d+ .*, 0 failed$", told.stdout, re.MULTILINE)


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
            return Answer({"output": np.array([json.dumps(name).encode()], object)})

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
