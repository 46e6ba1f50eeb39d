"""`backline serve --debug` on a pseudo-terminal."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.packages import OLD_NUMPY
from support.repositories import put
from support.server import free_ports
from support.terminal import Terminal

MODEL = """
import tinydb
from backline.model import Models
from marks import mark

class Model:
    execution_timeout_seconds = 0.2

    def predict(self, text: str, models: Models, stop: bool = False, fail: bool = False) -> str:
        if stop:
            breakpoint()
        if fail:
            raise ValueError("too loud")
        return str(models["shout"]({"text": text})["output"].item().decode()) + mark()
"""
SHOUT = """
class Model:
    def predict(self, text: str) -> str:
        return text.upper()
"""


class Debugged:
    """The debugging server."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository = repository
        self._port = free_ports(1)[0]
        self._asking = ThreadPoolExecutor(2)
        self.terminal = Terminal(
            *(
                "serve",
                repository,
                "--debug",
                "tagger",
                "--http-port",
                self._port,
                "--no-grpc",
                "--no-metrics",
            ),
            *("--cache-dir", folder / "cache", "--state-dir", folder / "state"),
        )

    def ask(self, **inputs: object) -> Future[Any]:
        return self._asking.submit(self._ask, inputs)

    def _ask(self, inputs: dict[str, object]) -> Any:
        url = f"http://127.0.0.1:{self._port}/v2/models/tagger/generate"
        try:
            with urllib.request.urlopen(url, json.dumps(inputs).encode(), timeout=30) as answer:
                return json.loads(answer.read())["output"]
        except urllib.error.HTTPError as error:
            return json.loads(error.read())["error"]
        except OSError as error:
            return error


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debugged]:
    folder = tmp_path_factory.mktemp("debug")
    put(folder / "models" / "tagger" / "1" / "model.py", MODEL)
    put(folder / "models" / "tagger" / "1" / "marks.py", "def mark():\n    return '!'\n")
    put(folder / "models" / "tagger" / "requirements.txt", f"tinydb==4.8.0\nnumpy=={OLD_NUMPY}\n")
    put(folder / "models" / "shout" / "1" / "model.py", SHOUT)
    server = Debugged(folder / "models", folder)
    shown = server.terminal.read_until("Ctrl-C stops")
    assert "Debugging tagger: it runs in this process, breakpoint() stops in this terminal" in shown
    assert "with the server's versions of packages, which differ from its environment's: numpy" in shown
    yield server
    server.terminal.close()


def test_a_breakpoint_stops_without_timeout_and_the_request_completes_after_it(
    server: Debugged,
) -> None:
    answer = server.ask(text="hello", stop=True)
    server.terminal.read_until(r"\(Pdb\) ")
    server.terminal.type("p text\n")
    server.terminal.read_until("'hello'")
    time.sleep(0.5)  # longer than the model's timeout in a worker process
    assert not answer.done()

    server.terminal.type("text = 'bye'\nc\n")
    assert answer.result(10) == "BYE!"


def test_an_error_shows_its_traceback_and_affects_no_other_request(server: Debugged) -> None:
    assert "ValueError: too loud (model.py, line 13, in predict)" in server.ask(
        text="hello", fail=True
    ).result(10)

    shown = server.terminal.read_until("ValueError: too loud")
    assert 'model.py", line 13, in predict' in shown
    assert server.ask(text="hello").result(10) == "HELLO!"


@pytest.mark.parametrize(
    ("file", "text", "answer"),
    [
        ("marks.py", "def mark():\n    return '?'\n", "HELLO?"),
        ("model.py", MODEL.replace("+ mark()", "+ mark() * 2"), "HELLO??"),
    ],
)
def test_an_edit_of_any_of_its_files_reloads_it(server: Debugged, file: str, text: str, answer: str) -> None:
    put(server.repository / "tagger" / "1" / file, text)

    server.terminal.read_until("successfully reloaded 'tagger' version 1")
    assert server.ask(text="hello").result(10) == answer


def test_ctrl_c_stops_the_server_even_at_a_breakpoint(server: Debugged) -> None:
    server.ask(text="hello", stop=True)
    server.terminal.read_until(r"\(Pdb\) ")
    began = time.monotonic()
    server.terminal.type("\x03")

    assert server.terminal.process.wait(10) == 0
    assert time.monotonic() - began < 5
    assert server.terminal.echoes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("taggr",), "there is no model 'taggr'; did you mean 'tagger'?"),
        (("add1",), "only Python models can be debugged, and the backend of 'add1' is identity"),
        (("tagger", "--model-control-mode", "explicit"), "--debug reloads models when their files change"),
    ],
)
def test_only_python_models_can_be_debugged(
    backline: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    put(tmp_path / "models" / "tagger" / "1" / "model.py", SHOUT)
    (tmp_path / "models" / "add1" / "1").mkdir(parents=True)
    inputs = '{ name: "%s" data_type: TYPE_FP32 dims: [ 1 ] }'
    put(
        tmp_path / "models" / "add1" / "config.pbtxt",
        f'backend: "identity"\ninput {inputs % "a"}\noutput {inputs % "b"}\n',
    )

    run = backline(
        "serve", tmp_path / "models", "--debug", *arguments, "--http-port", "0", "--no-grpc", "--no-metrics"
    )

    assert run.returncode in (1, 2)
    assert message in run.stderr


def test_debug_takes_a_path_without_a_repository(tmp_path: Path) -> None:
    put(tmp_path / "tagger" / "1" / "model.py", SHOUT)
    terminal = Terminal(
        "serve", "--debug", "tagger", "--http-port", "0", "--no-grpc", "--no-metrics", folder=tmp_path
    )
    try:
        assert "loaded tagger version 1" in terminal.read_until("Debugging tagger")
        terminal.type("\x03")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
