"""Compares the CPU time that requests of other servers' protocols take with that of the Open Inference
Protocol: `python benchmarks/dialect_cost.py`.

All requests go to one server and have the same numbers as JSON, in short rounds in turn. The exit status is 1
if a protocol takes more than MOST times the CPU time of the Open Inference Protocol.
"""

from __future__ import annotations

import json
import shutil
import sys

import click
import numpy as np
from harness import wrk
from harness.folders import BENCH
from harness.machine import machine
from harness.model import Model, model
from harness.server_process import ServerProcess, answers_200, free_ports

FOLDER = BENCH / "dialects"
MOST = 1.2
NAMES = ("add1", "ident")
JSON = {"Content-Type": "application/json"}


def requests_to(asked: Model) -> dict[str, tuple[str, bytes]]:
    """Returns a path and a body for each protocol."""
    rows = json.loads(asked.json_request()[0])["inputs"][0]["data"]
    rows = np.array(rows).reshape(asked.shape).tolist()

    def body(**document: object) -> bytes:
        return json.dumps(document, separators=(",", ":")).encode()

    predict = f"/v1/models/{asked.name}:predict"
    return {
        "open inference": (f"/v2/models/{asked.name}/infer", asked.json_request()[0]),
        "v1, rows": (predict, body(instances=rows)),
        "v1, rows by name": (predict, body(instances=[{asked.input_name: row} for row in rows])),
        "v1, columns": (predict, body(inputs={asked.input_name: rows})),
    }


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Seconds per protocol and round.")
def main(rounds: int, seconds: float) -> None:
    """Compares the CPU time of requests in JSON."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    models = [model(name, FOLDER / "models") for name in NAMES]
    for name, value in machine().items():
        click.echo(f"{name}: {value}")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "backline", "serve", str(FOLDER / "models"), "--http-port", str(port)]
    command += ["--no-grpc", "--no-metrics", "--state-dir", str(FOLDER / "state")]
    server = ServerProcess("dialects", command, folder=FOLDER)
    slow = False
    try:
        server.wait_until(lambda: answers_200(f"http://127.0.0.1:{port}/v2/health/ready"), 120)
        for asked in models:
            named = requests_to(asked)
            spent: dict[str, list[float]] = {name: [] for name in named}
            for number in range(rounds + 1):
                for name, (path, body) in named.items():
                    before = server.cpu_seconds()
                    url = f"http://127.0.0.1:{port}{path}"
                    found = wrk.run(url, "dialects", body, JSON, concurrency=4, seconds=seconds)
                    assert not found.errors, (name, found)
                    if number:  # the first round is the warm-up
                        spent[name].append((server.cpu_seconds() - before) / found.requests * 1e6)
            base = np.array(spent["open inference"])
            click.echo(f"\n{asked.name}, {asked.input.size} numbers")
            for name, times in spent.items():
                ratio = float(np.median(np.array(times) / base))
                slow = slow or ratio > MOST
                click.echo(f"{name:>20} {np.median(times):>10.1f} us {ratio:>6.2f}")
    finally:
        server.end()
    sys.exit(slow)


if __name__ == "__main__":
    main()
