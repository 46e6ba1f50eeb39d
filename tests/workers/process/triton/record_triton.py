"""Records Triton's responses to the cases of cases.py in triton_2_51.json: `python record_triton.py FOLDER
[WORD]`.

FOLDER is an environment of the Python that runs this, with `nvidia-pytriton==0.7.0` and `numpy<2`; that wheel
contains Triton 2.51. Without WORD, only new cases are recorded; with it, all cases whose names contain it are
recorded again. A case without a response within some seconds is recorded as such, and Triton restarts for the
next.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDS = HERE / "triton_2_51.json"
sys.path.insert(0, str(HERE.parents[2]))
from workers.process.triton.asking import Ask  # noqa: E402
from workers.process.triton.cases import CASES  # noqa: E402
from workers.process.triton.repository import write_repository  # noqa: E402


class Triton:
    """Triton in explicit mode, with the models of this folder."""

    def __init__(self, environment: Path) -> None:
        (root,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
        self.folder = Path(tempfile.mkdtemp(prefix="triton-"))
        repository = write_repository(self.folder)
        backends = self.folder / "backends"
        shutil.copytree(root / "backends", backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(
            root / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python"
        )
        http, grpc, metrics = (_free_port() for _ in range(3))
        ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
        command = [
            str(root / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *ports,
        ]
        libraries = f"{sysconfig.get_config_var('LIBDIR')}:{root.parents[1] / 'nvidia_pytriton.libs'}"
        variables = {
            **os.environ,
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": libraries,
        }
        variables.pop("PYTHONPATH", None)
        self.log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(
            [*command, "--model-control-mode=explicit"],
            env=variables,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while not _ready(http):
            if self.process.poll() is not None:
                raise SystemExit((self.folder / "log").read_text()[-3000:])
            time.sleep(0.1)
        self.ask = Ask(http, grpc, metrics)

    def close(self) -> None:
        self.process.kill()  # it may be waiting for a model that never responds
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(environment: Path, word: str = "") -> None:
    recorded: dict[str, Any] = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    triton = Triton(environment)
    try:
        for name, ask in CASES.items():
            if (name in recorded and not word) or word not in name:
                continue
            try:
                recorded[name] = ask(triton.ask)
            except Exception as error:  # the client timed out, or lost the server
                recorded[name] = {"no answer" if triton.process.poll() is None else "ended": repr(error)}
            if end := _end(recorded[name]):
                recorded[name] = end
                triton.close()
                triton = Triton(environment)
            print(name, "->", str(recorded[name])[:150], flush=True)
            RECORDS.write_text(
                json.dumps(
                    {name: recorded[name] for name in CASES if name in recorded}, indent=1, sort_keys=True
                )
                + "\n"
            )
    finally:
        triton.close()


def _end(document: Any) -> str:
    """Why Triton has to be restarted; "" if it need not be."""
    said = json.dumps(document)
    if "is not healthy" in said:
        return "the process of the model ended"
    if '"ended": ' in said:
        return "the server ended"
    return (
        "no answer" if any(text in said for text in ("no answer", "Deadline Exceeded", "timed out")) else ""
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *sys.argv[2:])
