"""`backline new`: its models can be served and pass their own tests."""

from __future__ import annotations

import errno
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backline.cli.new import TEMPLATES, command
from support.server import serve

ANSWERS = {
    "model": '"output":{"Backline": "name", "serves": "verb", "models": "noun"}',
    "batch": '"data":[3.333',
    "triton": '"data":[3.333',
    "stream": '"output":"THREE"',
    "audio": '"output":{"seconds": 0.001, "loudness_db": -12.2, "pitch_hz": 4000.0}',
    "image": '"output":{"width": 1, "height": 1, "colour": "red"}',
    "tabular": '"output":{"rent": 680.0}',
    "embeddings": '"output":[',
    "pipeline": '"output":["longest", "words", "first", "the"]',
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_new_model_serves_the_printed_request(backline: Any, tmp_path: Path, template: str) -> None:
    made = backline("new", tmp_path / "my-model", "--template", template)
    assert made.returncode == 0, made.stderr
    curl = shlex.split(re.findall(r"curl .*", made.stdout)[0])

    with serve(tmp_path / "my-model", tmp_path / "log") as server:
        curl[1] = curl[1].replace("localhost:8000", server.url)
        answer = subprocess.run([curl[0], "-s", *curl[1:]], capture_output=True, text=True, check=True).stdout

    assert ANSWERS[template] in answer


def test_the_tests_of_all_templates_pass_together_without_a_server(backline: Any, tmp_path: Path) -> None:
    for template in TEMPLATES:
        backline("new", tmp_path / f"{template}.v1", "--template", template)

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert f"{len(TEMPLATES)} passed" in run.stdout


def test_a_model_that_cannot_be_written_completely_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write, full = Path.write_text, OSError(errno.ENOSPC, "No space left on device")

    def write_one_file(path: Path, text: str) -> int:
        if path.name != "model.py":
            raise full
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_one_file)
    done = CliRunner().invoke(command, [str(tmp_path / "tagger")])

    assert isinstance(done.exception, OSError)
    assert done.exception.filename == str(tmp_path / "tagger" / "1" / "test_tagger.py")
    assert list(tmp_path.iterdir()) == []


def test_requires_writes_requirements(backline: Any, tmp_path: Path) -> None:
    backline("new", tmp_path / "m", "--requires", "pillow", "--requires", "tinydb==4.8.0")

    assert (tmp_path / "m" / "requirements.txt").read_text() == "pillow\ntinydb==4.8.0\n"


def test_a_requirement_without_a_name_is_refused(backline: Any, tmp_path: Path) -> None:
    made = backline("new", tmp_path / "m", "--requires", "")

    assert made.returncode == 1
    assert "--requires needs the name of a package" in made.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("there", "already exists"), ("no good", "is not a usable model name")]
)
def test_new_overwrites_nothing_and_checks_names(
    backline: Any, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "there").mkdir()

    made = backline("new", tmp_path / name)

    assert made.returncode == 1
    assert message in made.stderr
