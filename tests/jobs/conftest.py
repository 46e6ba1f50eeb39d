"""What the tests of jobs share: a caller of the routes, and models that take their time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from support.server import ServerProcess

BODY = json.dumps(
    {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]}
).encode()

#: Returns its input after a while, and fails as often as `fails` says; counts its runs in a file.
MODEL = """
import time
from pathlib import Path

from backline.model import FP32

RUNS = Path(__file__).parents[3] / "runs"


class Slow:
    def predict(self, x: FP32[-1], seconds: FP32[1]) -> FP32[-1]:
        with RUNS.open("a") as runs:
            runs.write(f"{x[0]:g}\\n")
        if x[0] < 0 and len(RUNS.read_text().splitlines()) <= -x[0]:
            raise RuntimeError("not yet")
        time.sleep(float(seconds[0]))
        return x
"""


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class JobCaller:
    """Calls the routes of a server with the fields of one caller."""

    server: ServerProcess
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, body: bytes | None = None, **fields: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.server.http_port, timeout=70)
        try:
            given = {name.replace("_", "-"): value for name, value in fields.items()}
            connection.request(method, path, body, {**self.headers, **given})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def submit(self, path: str = "/v2/models/add1/jobs", body: bytes = BODY, **fields: str) -> str:
        answer = self("POST", path, body, **fields)
        assert answer.status == 202, answer
        assert answer.headers["location"] == f"/v2/jobs/{answer.json['id']}"
        return str(answer.json["id"])

    def wait(self, id: str) -> Any:
        """The state of a job once it has ended."""
        for _ in range(3):
            document = self("GET", f"/v2/jobs/{id}?wait=30").json
            if document["state"] not in ("queued", "running"):
                return document
        raise AssertionError(f"the job has not ended: {document}")


def slow_body(x: float, seconds: float) -> bytes:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1], "data": [value]}
        for name, value in (("x", x), ("seconds", seconds))
    ]
    return json.dumps({"inputs": inputs}).encode()


def add_slow(repository: Path) -> None:
    folder = repository / "slow" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
