"""Records Triton's answers to the configurations of cases.py in triton_2_51.json: `python record_triton.py
FOLDER`.

FOLDER is a Python environment with `nvidia-pytriton==0.7.0` and `numpy<2`, for the Python version that runs
this. The wheel has Triton 2.51 with only its Python backend, so `backend` is added to every configuration.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
#: Answers already in it are kept: remove it to record all of them again.
RECORDS = HERE / "triton_2_51.json"
sys.path.insert(0, str(HERE))
from cases import MODEL, NOT_COMPLETED, OVERRIDES, PAIRS, REFUSED, TAKEN, TENSORS  # noqa: E402


class Triton:
    """A server that loads models on request."""

    def __init__(self, environment: Path, *options: str) -> None:
        (root,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
        self.folder = Path(tempfile.mkdtemp(prefix="triton-"))
        self.repository = self.folder / "models"
        self.repository.mkdir()
        backends = self.folder / "backends"
        shutil.copytree(root / "backends", backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(
            root / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python"
        )
        self.port = _free_port()
        ports = [f"--http-port={self.port}", f"--grpc-port={_free_port()}", f"--metrics-port={_free_port()}"]
        command = [
            str(root / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
        ]
        command += [
            "--model-control-mode=explicit",
            "--http-address=127.0.0.1",
            "--cache-config=local,size=1048576",
        ]
        command += [f"--cache-directory={root / 'caches'}", *ports, *options]
        libraries = f"{sysconfig.get_config_var('LIBDIR')}:{root.parents[1] / 'nvidia_pytriton.libs'}"
        variables = {
            **os.environ,
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": libraries,
        }
        self.log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(command, env=variables, stdout=self.log, stderr=subprocess.STDOUT)
        while not self._ready():
            if self.process.poll() is not None:
                raise SystemExit(f"Triton ended: {self._log()[-3000:]}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def load(self, name: str, text: str, override: object = None) -> dict:
        """{"config": the answer of /config} or {"error": its text}."""
        folder = self.repository / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(MODEL)
        (folder / "labels.txt").write_text("cat\ndog\n")
        (folder / "warmup").mkdir()
        (folder / "warmup" / "x.bin").write_bytes(bytes(4 * 4))
        (folder / "warmup" / "short.bin").write_bytes(bytes(3))
        backend = "" if "platform:" in text else 'backend: "python" '
        (folder / "config.pbtxt").write_text(backend + text)
        parameters = (
            {}
            if override is None
            else {"parameters": {"config": override if isinstance(override, str) else json.dumps(override)}}
        )
        logged = len(self._log())
        try:
            status, answer = self._ask(f"/v2/repository/models/{name}/load", parameters)
        except http.client.RemoteDisconnected:
            return {"ended": f"it crashed with {self.process.wait(60)}"}
        except TimeoutError:
            self.process.kill()
            return {"ended": "it did not answer"}
        if status != 200:
            # Errors before the load begins are only in the log.
            polled = re.findall(r"Poll failed for model directory '\w+': (.*)", self._log()[logged:])
            return {
                "error": (polled[0].rstrip('"') if polled else answer["error"]).replace(
                    str(self.repository), "<repository>"
                )
            }
        _, config = self._ask(f"/v2/models/{name}/config")
        self._ask(f"/v2/repository/models/{name}/unload", {})
        return {"config": config}

    def _log(self) -> str:
        return (self.folder / "log").read_text()

    def _ask(self, path: str, document: object = None) -> tuple[int, dict]:
        data = None if document is None else json.dumps(document).encode()
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", data=data, timeout=20
            ) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
        shutil.rmtree(self.folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(environment: Path) -> None:
    recorded: dict[str, dict] = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    completed = {name: (text, None) for name, text in {**TAKEN, **REFUSED, **PAIRS}.items()} | {
        name: (TENSORS, o) for name, o in OVERRIDES.items()
    }
    for options, cases in (
        ((), completed),
        (("--disable-auto-complete-config",), {n: (t, None) for n, t in NOT_COMPLETED.items()}),
    ):
        triton = Triton(environment, *options)
        try:
            for name, (text, override) in cases.items():
                if name in recorded:
                    continue
                recorded[name] = triton.load(name, text, override)
                print(name, recorded[name].get("error", list(recorded[name])), flush=True)
                RECORDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
                if "ended" in recorded[name]:
                    triton.close()
                    triton = Triton(environment, *options)
        finally:
            triton.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
