"""Sends requests made from the OpenAPI documents: `python tests/conformance/openapi_cases.py`.

A server with models of every kind runs in the background. schemathesis, which `pip install schemathesis`
brings, reads the document of the server and of each model, and sends valid and invalid requests to every
operation. A case fails if the status, the type or the contents of the response are not what the document
says. The exit status is 1 if any case fails, or if the server meets an unexpected exception.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from shutil import which

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnx import TensorProto

from support import models
from support.console_models import build
from support.server import serve

CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"
#: Routes that would leave the next request without a model, or never end.
LEFT_OUT = r"(unload|shutdown)$"


def repository(folder: Path) -> Path:
    build(folder)
    for name in ("INT8", "INT64", "BOOL", "FLOAT16", "STRING"):
        models.identity_of(folder, name.lower(), getattr(TensorProto, name), ("N", 3))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description="Send requests made from every OpenAPI document.")
    parser.add_argument("--cases", type=int, default=20_000, help="about how many (default: %(default)s)")
    parser.add_argument("--schemathesis", default=which("schemathesis") or "schemathesis", help="the program")
    arguments = parser.parse_args()
    failed = sent = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with serve(repository(folder / "models"), folder / "log", ready=False) as server:
            server.wait_started()
            with urllib.request.urlopen(f"{server.url}/v2/models") as answer:
                names = sorted({one["name"] for one in json.load(answer)["versions"] if one["ready"]})
            documents = ["/openapi.json", *(f"/v2/models/{name}/openapi.json" for name in names)]
            operations = [_operations(server.url + path) for path in documents]
            each = max(1, arguments.cases // sum(operations))
            for path in documents:
                report = folder / "report.txt"
                status = _run(arguments.schemathesis, server.url, path, each, report)
                text = report.read_text(errors="replace")
                found = re.search(r"(\d[\d,]*) generated", text)
                sent += int(found[1].replace(",", "")) if found else 0
                print(
                    f"{path}: {'passed' if status == 0 else 'FAILED'}, {found[0] if found else ''}",
                    flush=True,
                )
                if status:
                    failed += 1
                    print(text)
            if server.process.poll() is not None:
                print("the server has ended:", server.output)
                failed += 1
            errors = [line for line in server.output.splitlines() if "unexpected exception" in line]
            print(
                f"{sent} cases of {len(documents)} documents; {len(errors)} unexpected exceptions in the log"
            )
    return 1 if failed or errors else 0


def _operations(url: str) -> int:
    with urllib.request.urlopen(url) as answer:
        return sum(len(methods) for methods in json.load(answer)["paths"].values())


def _run(program: str, url: str, path: str, each: int, report: Path) -> int:
    command = [
        program, "run", url + path, "--url", url, "--checks", CHECKS, "--max-examples", str(each),
        "--phases", "examples,coverage,fuzzing", "--seed", "1",
        *(("--exclude-path-regex", LEFT_OUT) if path == "/openapi.json" else ()),
        "--generation-database", "none", "--request-timeout", "20", "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    with report.open("w") as output:
        return subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=report.parent,
            env={**os.environ, "COLUMNS": "100"},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
