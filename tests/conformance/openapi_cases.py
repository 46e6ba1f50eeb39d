"""Sends requests made from the OpenAPI documents: `python tests/conformance/openapi_cases.py`.

A server with models of every kind runs in the background. schemathesis reads the document of the server and
of each model, and sends valid and invalid requests to every operation, with one seed after the other until
enough cases have been sent. A case fails if the status, the type or the contents of the response are not what
the document says, or if the status is a server error. The exit status is 1 if any case fails, or if the
server meets an unexpected exception.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnx import TensorProto

from support import models
from support.console_models import add_listener, build
from support.repositories import put
from support.server import serve

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
#: The only server error that a request may bring about says that the server does not support something.
CONFIGURATION = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501"]
"""
MIXED = """
from typing import NamedTuple


class Said(NamedTuple):
    text: str
    about: dict
    items: list


class Model:
    def predict(
        self, text: str, about: dict, items: list, count: int = 1, ratio: float = 0.5, flag: bool = False
    ) -> Said:
        return Said(text, about, [*items, count, str(ratio), flag])
"""
#: The most examples of an operation in one run of schemathesis.
EXAMPLES = 100
#: Routes that would leave the next request without a model, or never end.
LEFT_OUT = r"(unload|shutdown)$"


def repository(folder: Path) -> Path:
    build(folder)
    shutil.rmtree(folder / "broken")  # requests to it get 503
    add_listener(folder)
    for name in ("INT8", "INT64", "BOOL", "FLOAT16", "STRING"):
        models.identity_of(folder, name.lower(), getattr(TensorProto, name), ("N", 3))
    put(folder / "mixed" / "1" / "model.py", MIXED)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description="Send requests made from every OpenAPI document.")
    parser.add_argument("--cases", type=int, default=20_000, help="about how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first of the seeds (default: %(default)s)")
    program = Path(sys.executable).with_name("schemathesis")
    parser.add_argument("--schemathesis", default=program, help="the program (default: %(default)s)")
    arguments = parser.parse_args()
    failed = sent = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "schemathesis.toml").write_text(CONFIGURATION)
        options = ("--model-control-mode", "explicit", "--load-model", "*")
        with serve(repository(folder / "models"), folder / "log", *options) as server:
            with urllib.request.urlopen(f"{server.url}/v2/models") as answer:
                names = json.load(answer)["models"]
            documents = ["/openapi.json", *(f"/v2/models/{name}/openapi.json" for name in names)]
            for seed in count(arguments.seed):
                before = sent
                for path in documents:
                    passed, cases, report = _run(arguments.schemathesis, folder, server.url, path, seed)
                    sent += cases
                    failed += not passed
                    told = "passed" if passed else f"FAILED\n{report}"
                    print(f"seed {seed}, {path}: {cases} cases, {sent} in total: {told}", flush=True)
                if sent >= arguments.cases or sent == before or server.process.poll() is not None:
                    break
            if server.process.poll() is not None:
                print("the server has ended:", server.output)
                failed += 1
            errors = [line for line in server.output.splitlines() if "unexpected exception" in line]
            print(
                f"{sent} cases of {len(documents)} documents; {failed} runs failed; {len(errors)} unexpected"
                " exceptions in the log"
            )
    return 1 if failed or errors else 0


def _run(program: str | Path, folder: Path, url: str, path: str, seed: int) -> tuple[bool, int, str]:
    """Whether all cases passed, how many there were, and the report of schemathesis."""
    command = [
        program, "--config-file", "schemathesis.toml", "run", url + path, "--url", url, "--checks", CHECKS,
        "--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing", "--seed", str(seed),
        *(("--exclude-path-regex", LEFT_OUT) if path == "/openapi.json" else ()),
        "--generation-database", "none", "--request-timeout", "20", "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        check=False,
    )
    found = re.search(r"(\d[\d,]*) generated", done.stdout)
    return done.returncode == 0, int(found[1].replace(",", "")) if found else 0, done.stdout


if __name__ == "__main__":
    sys.exit(main())
