"""Generated clients pass mypy in strict mode, call the model, and never run code that a server's names
contain."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import backline
from backline_client.client.generator import generate_module
from backline_client.client.records import ModelMetadata
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from support import models
from support.server import ServerProcess, serve
from support.streaming import put_models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("generated")
    models.add1(folder / "models")
    put_models(folder / "models")
    with serve(folder / "models", folder / "log") as running:
        yield running


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def generated(server: ServerProcess, model: str, folder: Path) -> Any:
    path = folder / f"{model}_client.py"
    command = [sys.executable, "-m", "backline", "client", "generate", model, "--url", server.url]
    subprocess.run([*command, "-o", str(path)], check=True, capture_output=True, timeout=60)
    return load(path)


def test_a_generated_client_calls_the_model(server: ServerProcess, tmp_path: Path) -> None:
    module = generated(server, "add1", tmp_path)
    inputs = module.Add1Inputs(np.ones((2, 16), np.float32))
    with backline.connect(server.url) as client:
        outputs = module.Add1(client)(inputs)
    assert (outputs.OUTPUT0.tolist(), outputs.model_version) == ([[2.0] * 16] * 2, "1")

    async def call() -> Any:
        async with backline.connect_async(server.url) as client:
            return await module.AsyncAdd1(client)(inputs)

    assert asyncio.run(call()).OUTPUT0.tolist() == [[2.0] * 16] * 2


def test_a_generated_client_of_a_decoupled_model_yields_responses(
    server: ServerProcess, tmp_path: Path
) -> None:
    module = generated(server, "repeat", tmp_path)
    inputs = module.RepeatInputs(
        IN=np.int32([7, 8]), DELAY=np.uint32([0, 0]), WAIT=np.uint32([0])
    )  # fmt: skip
    with backline.connect(server.grpc_url) as client:
        assert [outputs.OUT.tolist() for outputs in module.Repeat(client)(inputs)] == [[7], [8]]


#: Names that are no identifiers, or that would end a string or a comment.
NAMES = ("class", "by_name", "a b", "1st", "__init__", "a\nb", '"""', "\\", "x'", "é", "a-b", "model_version")


def hostile(*, decoupled: bool) -> str:
    tensors = tuple(
        TensorSpec(name, datatype, (-1, 2), optional=bool(index % 2))
        for index, (name, datatype) in enumerate(zip(NAMES, DataType, strict=False))
    )
    metadata = ModelMetadata('m"""\nimport os', ("1",), "", tensors, tensors)
    return generate_module(metadata, decoupled=decoupled)


def test_names_that_python_does_not_allow_are_changed_and_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "hostile_client.py"
    path.write_text(hostile(decoupled=False))
    module: Any = load(path)
    assert module.MODEL == 'm"""\nimport os'
    assert not hasattr(module, "os")
    arrays = [np.zeros((1, 2))] * len(NAMES)
    assert set(module.MImportOsInputs(*arrays).by_name()) == set(NAMES)


@pytest.mark.parametrize("name", ["\\x", "\\N{", "m\x1b[31m\n", "\\"])
def test_no_name_of_a_model_breaks_the_generated_module(name: str, tmp_path: Path) -> None:
    code = generate_module(ModelMetadata(name, ("1",), "", (), ()), decoupled=False)
    (tmp_path / "client.py").write_text(code)
    assert name == load(tmp_path / "client.py").MODEL
    assert "\x1b" not in code


def test_generated_modules_pass_mypy_in_strict_mode(tmp_path: Path) -> None:
    for name, decoupled in (("one", False), ("many", True)):
        (tmp_path / f"{name}.py").write_text(hostile(decoupled=decoupled))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "/dev/null", "--cache-dir"]
    found = subprocess.run(
        [*command, str(tmp_path / "cache"), "--follow-imports", "silent", "one.py", "many.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
