"""No secret that a server is given leaves it: in logs, responses, metrics, traces, recordings or files."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backline.access.keys import generate_key
from backline.cli.keys import command
from support import models
from support.server import ServerProcess, free_ports, serve
from support.web import Page, WebServer

BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
CRASHES = """
import os, sys
from backline.model import FP32

class Model:
    def predict(self, INPUT0: FP32[1, 16]) -> FP32[1, 16]:
        os.abort()
"""


class Secrets(dict[str, str]):
    """Secrets by where they are given."""

    def __missing__(self, where: str) -> str:
        self[where] = f"canary-{len(self)}-{generate_key()[3:]}"
        return self[where]

    def found_in(self, text: str) -> list[str]:
        """Those that a text contains, whole, in part or encoded."""
        found = []
        for where, secret in self.items():
            forms = {secret, secret[:20], secret[-20:], base64.b64encode(secret.encode()).decode()[:24]}
            if any(form in text for form in forms):
                found.append(where)
        return found


def archive(folder: Path) -> bytes:
    models.add1(folder, name="remote")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for path in folder.rglob("*.onnx"):
            packed.write(path, path.relative_to(folder))
    return content.getvalue()


def ask(port: int, method: str, path: str, body: str, fields: dict[str, str]) -> str:
    """The whole response, as text."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body or None, fields)
        answer = connection.getresponse()
        return f"{answer.status} {answer.headers}\n{answer.read().decode(errors='replace')}"


def call(port: int, metadata: list[tuple[str, str]], *, streamed: bool) -> str:
    """The response or error of an inference, with its metadata, as text."""
    request = service_pb2.ModelInferRequest(model_name="add1")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(np.full(16, 1.5, np.float32).tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            if streamed:
                return str(list(stub.ModelStreamInfer(iter([request]), metadata=metadata, timeout=60)))
            return str(stub.ModelInfer(request, metadata=metadata, timeout=60))
        except grpc.RpcError as error:
            return f"{error} {error.trailing_metadata()}"


def use_everything(running: ServerProcess, secrets: Secrets, key: str) -> list[str]:
    """Sends secrets in every place to every kind of route. Returns all that the server says."""
    wrong = [
        {"Authorization": f"Bearer {secrets['wrong key']}"},
        {"Authorization": secrets["key without a scheme"]},
        {"Authorization": f"{secrets['key as the scheme']} x"},
        {"Authorization": f"Basic {base64.b64encode(secrets['basic password'].encode()).decode()}"},
        {"X-API-Key": secrets["wrong X-API-Key"]},
    ]
    right = [
        {"Authorization": f"Bearer {key}", "Cookie": secrets["cookie"], "X-Token": secrets["other field"]},
        {"X-API-Key": secrets["admin key"], "Referer": f"http://x/?{secrets['referer']}"},
    ]
    routes = [
        ("POST", "/v2/models/add1/infer", BODY),
        ("POST", "/v2/models/crashes/infer", BODY),
        ("POST", "/v2/models/add1/infer", "{"),
        ("GET", "/v2", ""),
        ("GET", "/v2/models/remote/config", ""),
        ("GET", "/v2/models", ""),
        ("POST", "/v2/repository/index", "{}"),
        ("POST", "/v2/repository/models/remote/load", ""),
        ("POST", "/v2/repository/models/nowhere/load", ""),
        ("POST", "/v2/models/add1/record", '{"count": 1}'),
        ("POST", "/v2/models/add1/infer", BODY),
        ("GET", "/v2/models/stats", ""),
        ("GET", "/v2/logging", ""),
        ("POST", "/v2/logging", "{}"),
        ("GET", "/v2/trace/setting", ""),
        ("GET", "/v2/repository/history", ""),
        ("GET", "/v2/audit?limit=1000", ""),
        ("GET", "/metrics", ""),
        ("GET", f"/v2/nothing?key={secrets['query']}", ""),
    ]
    told = [
        ask(running.http_port, method, path, body, fields)
        for fields in (*wrong, *right, {})
        for method, path, body in routes
    ]
    for fields in (*wrong, *right, {}):
        metadata = [(name.lower(), value) for name, value in fields.items()]
        metadata.append(("session", secrets["metadata"]))
        told += [call(running.grpc_port, metadata, streamed=streamed) for streamed in (False, True)]
    return told


@pytest.mark.parametrize("log_format", ["default", "json"])
def test_no_secret_leaves_the_server(tmp_path: Path, log_format: str) -> None:
    secrets = Secrets()
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / "config.pbtxt").write_text("response_cache { enable: true }")
    (tmp_path / "models" / "crashes" / "1").mkdir(parents=True)
    (tmp_path / "models" / "crashes" / "1" / "model.py").write_text(CRASHES)
    auth = tmp_path / "auth.toml"
    scopes = [word for name in ("infer", "read") for word in ("--scope", name)]
    key = CliRunner().invoke(command, ["create", "app", "--auth", str(auth), *scopes]).stdout.strip()
    secrets["key"] = key
    (closed,) = free_ports(1)
    with WebServer() as web:
        web.pages["/models.zip"] = Page(archive(tmp_path / "packed"))
        place = web.url.partition("://")[2] + "/models.zip"
        user, signature = secrets["URL password"], secrets["URL signature"]
        redis = f"redis,host=127.0.0.1,port={closed},password={secrets['redis password']}"
        environment = {
            "BACKLINE_ADMIN_KEY": secrets["admin key"],
            "BACKLINE_MODEL_REPOSITORY": f"http://user:{user}@{place}?signature={signature}",
            "BACKLINE_CACHE_CONFIG": redis,
            "AWS_SECRET_ACCESS_KEY": secrets["AWS key"],
            "HF_TOKEN": secrets["HF token"],
            "CANARY": secrets["environment"],
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        trace = (
            "--trace-config",
            f"triton,file={tmp_path / 'trace.json'}",
            "--trace-config",
            "level=TIMESTAMPS",
        )
        options = (
            *("--auth", str(auth), "--state-dir", str(tmp_path / "state")),
            *("--model-control-mode", "explicit", "--load-model", "*"),
            *("--log-verbose", "2", "--log-format", log_format, "--trace-config", "rate=1", *trace),
        )
        with serve(tmp_path / "models", tmp_path / "log", *options, environment=environment) as running:
            told = use_everything(running, secrets, key)
            process = psutil.Process(running.process.pid)
            titles = [" ".join(one.cmdline()) for one in (process, *process.children(recursive=True))]
            auth.write_text(auth.read_text() + "nonsense = 1\n")  # a reload that fails
            running.wait_for("previous keys stay in force", 30)
    assert any(answer.startswith("200") for answer in told)
    assert any("audit" in answer or "entries" in answer for answer in told)
    shown = subprocess.run(
        [sys.executable, "-m", "backline", "config", "show", str(tmp_path / "models" / "add1")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    kept = [tmp_path / "state", tmp_path / "cache"]
    files = [tmp_path / "log", *tmp_path.glob("trace.json*")]
    files += [path for folder in kept for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for what, text in (
        ("a response", "\n".join(told)),
        ("a process title", "\n".join(titles)),
        ("config show", shown.stdout + shown.stderr),
        *((str(file), file.read_bytes().decode("latin-1")) for file in files),
    ):
        assert not secrets.found_in(text), (what, secrets.found_in(text))


def test_a_server_that_cannot_start_does_not_show_secrets_either(tmp_path: Path) -> None:
    secrets = Secrets()
    (closed,) = free_ports(1)
    for option, text in (
        (
            "BACKLINE_MODEL_REPOSITORY",
            f"http://user:{secrets['a']}@127.0.0.1:{closed}/m.zip?s={secrets['b']}",
        ),
        ("BACKLINE_CACHE_CONFIG", f"redis,host=127.0.0.1,pasword={secrets['c']}"),
        ("BACKLINE_CACHE_CONFIG", f"redis,host=127.0.0.1,password=x,{secrets['d']}"),
        ("BACKLINE_API_KEY", secrets["e"][:12]),
    ):
        models.add1(tmp_path / "models")
        done = subprocess.run(
            [sys.executable, "-m", "backline", "serve", str(tmp_path / "models"), "--http-port", "0",
             "--grpc-port", "0", "--no-metrics", "--exit-on-error", "true"],
            env={**os.environ, option: text, "BACKLINE_DEBUG": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode != 0, done.stderr
        assert not secrets.found_in(done.stdout + done.stderr), done.stderr
