"""How models of Triton's Python backend start: their code completes the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Homes = Callable[..., Any]

INCOMPLETE = """
backend: "python"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" } ]
"""
HOOK = """
    @staticmethod
    def auto_complete_config(config):
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [1]})
        return config
"""
MODEL = """
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
#: Its instances wait for each other in `initialize`.
WAITING = """
import os, time
from pathlib import Path

class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]).parent.parent / "started"
        (folder / str(os.getpid())).touch()
        end = time.monotonic() + 20
        while len(list(folder.iterdir())) < 3:
            assert time.monotonic() < end, "the others do not start"
            time.sleep(0.01)

    def execute(self, requests):
        return []
"""


def put(repository: Path, config: str, code: str) -> None:
    (repository / "m" / "1").mkdir(parents=True)
    (repository / "m" / "config.pbtxt").write_text(config)
    (repository / "m" / "1" / "model.py").write_text(code)


def test_the_model_may_add_datatype_and_dims_of_an_output(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        put(repository, INCOMPLETE, MODEL + HOOK)
        async with home(repository) as server:
            (output,) = server.engine.find("m").signature.outputs
            assert (output.name, output.datatype.name, output.shape) == ("OUT", "INT32", (1,))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "code",
    [MODEL, MODEL + "    @staticmethod\n    def auto_complete_config(config):\n        return config\n"],
    ids=["no hook", "hook adds nothing"],
)
def test_what_the_model_does_not_add_is_refused_in_tritons_words(
    home: Homes, repository: Path, code: str
) -> None:
    async def scenario() -> None:
        put(repository, INCOMPLETE, code)
        async with home(repository) as server:
            assert "model output 'OUT' must specify 'data_type' for m" in server.engine.find("m").reason

    asyncio.run(scenario())


def test_all_instances_start_at_once(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        (repository.parent / "started").mkdir()
        put(repository, 'backend: "python" instance_group { count: 3 }', WAITING)
        async with home(repository) as server:
            model = server.engine.find("m")
            assert (model.reason, model.placement.instances) == ("", 3)

    asyncio.run(scenario())
