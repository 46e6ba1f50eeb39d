"""Clients that generators write from the server's OpenAPI documents import and run."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.tools import run, tool

SHOUT = """def shout(text: str, times: int = 1, options: dict | None = None) -> str:
    return text.upper() * times
"""
WORDS = """from collections.abc import Iterator


def words(text: str) -> Iterator[str]:
    yield from text.split()
"""
#: Calls of each generated Python client, and what they print.
PYTHON = {
    "add1": (
        """from generated.api.inference import post_models, post_v2_models_infer as infer
from generated.models import *
answer = post_models.sync(client=client, body=PostModelsJsonBody(input0=[[1.0] * 16]))
print(answer.to_dict()["OUTPUT0"][0][:2])
tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
print(infer.sync(client=client, body=PostV2ModelsInferBody.from_dict({"inputs": [tensor]})).model_name)
print(post_models.sync(client=client, body=PostModelsJsonBody(input0=[1.0])).error[:13])
""",
        ["[2.0, 2.0]", "add1", "[request id: "],
    ),
    "shout": (
        """from generated.api.inference import post_models
from generated.api.models import get_v2_models
from generated.models import *
print(post_models.sync(client=client, body=PostModelsJsonBody(text=["hi"], times=[2])).to_dict())
print(get_v2_models.sync(client=client).name)
""",
        ["{'output': ['HIHI']}", "shout"],
    ),
    "words": (
        """from generated.api.inference import post_models
from generated.models import *
answer = post_models.sync_detailed(client=client, body=PostModelsJsonBody(text=["a b"]))
print(answer.content.count(b"data:"))
""",
        ["2"],
    ),
    "": (
        """from generated.api.server import get_v2_health_ready as ready
from generated.api.settings import get_v2_trace_setting, post_v2_trace_setting as trace
from generated.models import *
from generated.types import UNSET
print(ready.sync(client=client).ready)
body = PostV2TraceSettingBody.from_dict({"trace_level": ["OFF"], "trace_rate": "7"})
print(trace.sync(client=client, body=body).to_dict()["trace_rate"])
""",
        ["True", "7"],
    ),
}
#: A call through each generated TypeScript client, whose types are checked, and what it prints.
TYPESCRIPT = {
    "add1": (
        """const { data } = await client.POST("/models/add1", { body: { INPUT0: Array(16).fill(1) } });
console.log(JSON.stringify(data?.OUTPUT0?.slice(0, 2)));""",
        "[2,2]",
    ),
    "shout": (
        """const { data } = await client.POST("/models/shout", { body: { text: ["hi"], times: [2] } });
console.log(data?.output?.[0]);""",
        "HIHI",
    ),
    "words": (
        """const { data } = await client.POST("/models/words", { body: { text: ["a b"] }, parseAs: "text" });
console.log(String(data).split("data:").length - 1);""",
        "2",
    ),
    "": (
        'const { data } = await client.GET("/v2/health/ready");\nconsole.log(data?.ready);',
        "true",
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openapi")
    models.add1(folder / "models")
    put(folder / "models" / "shout" / "1" / "model.py", SHOUT)
    put(folder / "models" / "words" / "1" / "model.py", WORDS)
    with serve(folder / "models", folder / "log") as running:
        yield running


def _document(server: ServerProcess, model: str, folder: Path) -> str:
    """Fetches a model's document, or the server's for "", into a file and returns the file's path."""
    path = f"/v2/models/{model}/openapi.json" if model else "/openapi.json"
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        (folder / "openapi.json").write_bytes(answer.read())
    return str(folder / "openapi.json")


@pytest.mark.parametrize("model", list(PYTHON))
def test_the_client_of_openapi_python_client_runs(server: ServerProcess, tmp_path: Path, model: str) -> None:
    document = _document(server, model, tmp_path)
    options = ["--meta", "none", "--output-path", str(tmp_path / "generated")]
    said = run("openapi-python-client", "generate", "--path", document, *options)
    script, printed = PYTHON[model]
    imports = "import importlib, pkgutil, generated\n"
    imports += "for each in pkgutil.walk_packages(generated.__path__, 'generated.'):\n"
    imports += "    importlib.import_module(each.name)\n"
    client = f"from generated import Client\nclient = Client({server.url!r})\n"
    (tmp_path / "call.py").write_text(imports + client + script)

    done = subprocess.run(
        [sys.executable, "call.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )

    assert "Endpoint will not be generated" not in said
    assert done.stdout.splitlines() == printed, done.stderr


@pytest.mark.parametrize("model", list(TYPESCRIPT))
def test_the_client_of_openapi_typescript_runs(server: ServerProcess, tmp_path: Path, model: str) -> None:
    document = _document(server, model, tmp_path)
    run("openapi-typescript", document, "--output", str(tmp_path / "generated.ts"), timeout=120)
    script, printed = TYPESCRIPT[model]
    (tmp_path / "node_modules").symlink_to(run("npm", "root", "--global").strip())
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    (tmp_path / "call.ts").write_text(
        'import createClient from "openapi-fetch";\nimport type { paths } from "./generated.js";\n'
        f'const client = createClient<paths, "application/json">({{ baseUrl: "{server.url}" }});\n'
        f"{script}\nexport {{}};\n"
    )
    options = {"strict": True, "target": "es2022", "module": "nodenext", "types": []}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["call.ts"]}))
    run("tsc", "--project", str(tmp_path), timeout=120)

    said = subprocess.run(
        [tool("node"), "call.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert said.stdout.strip() == printed, said.stderr
