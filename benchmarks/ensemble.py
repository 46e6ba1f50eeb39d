"""Compares an ensemble of three models with Triton's: `python benchmarks/ensemble.py`.

Each step adds a number to 16 floats with ONNX Runtime, so that the overhead between steps dominates.
`backline` runs the ONNX files with its own backend. The Triton wheel has no such backend, so `triton` runs
them in a `model.py` for its Python backend, with one process per step and dynamic batching. `backline,
model.py` serves the same repository as Triton, also in worker processes. wrk sends HTTP and h2load sends
gRPC, over 1, 16 and 64 connections. Each ratio compares two servers within one round; the median of the
ratios is printed. The exit status is 1 if `backline` misses its claim.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from harness import h2load, wrk
from harness.case import Case
from harness.comparison import Row, measure
from harness.environment import CannotRun
from harness.folders import BENCH, HARNESS
from harness.machine import machine
from harness.model import Model, write_model
from harness.peers.backline import Backline
from harness.peers.peer import Peer
from harness.peers.triton import Triton

STEPS = ("add1", "add2", "add3")
CONNECTIONS = (1, 16, 64)
#: The servers of the two repositories: the repository of ONNX files, and the one shared with Triton.
OWN, SAME = "backline", "backline, model.py"
#: The claimed ratio of OWN's requests per second to Triton's, for both protocols and any number of
#: connections.
LEAST = 1.0
_TENSORS = """
max_batch_size: 64
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
"""
_PYTHON = (
    f'backend: "python"{_TENSORS}dynamic_batching {{ }}\ninstance_group [ {{ kind: KIND_CPU count: 1 }} ]\n'
)


def ensemble() -> str:
    tensors = ["INPUT0", *(f"after_{step}" for step in STEPS[:-1]), "OUTPUT0"]
    steps = [
        f'step {{ model_name: "{step}" model_version: -1 input_map {{ key: "INPUT0" value: "{taken}" }}'
        f' output_map {{ key: "OUTPUT0" value: "{given}" }} }}'
        for step, taken, given in zip(STEPS, tensors, tensors[1:], strict=False)
    ]
    return f'platform: "ensemble"{_TENSORS}ensemble_scheduling {{\n{chr(10).join(steps)}\n}}\n'


def write_repository(folder: Path, *, python: bool) -> Path:
    """Writes the steps and the ensemble `chain`; with `python`, each step also has a model.py."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, step in enumerate(STEPS, start=1):
        write_model(folder / step / "1" / "model.onnx", "Add", [16], float(number))
        if python:
            shutil.copy(HARNESS / "peers" / "served" / "triton_model.py", folder / step / "1" / "model.py")
            (folder / step / "config.pbtxt").write_text(_PYTHON)
    (folder / "chain" / "1").mkdir(parents=True)
    (folder / "chain" / "config.pbtxt").write_text(ensemble())
    return folder


def asked() -> Model:
    """Returns a model that does all steps at once. Its request and answer are those of the ensemble."""
    whole = BENCH / "ensembles" / "whole.onnx"
    write_model(whole, "Add", [16], float(sum(range(1, len(STEPS) + 1))))
    return Model("chain", whole, "INPUT0", (1, 16), 0.03)


def start() -> dict[str, Peer]:
    """Starts all servers. Raises CannotRun if one cannot start, after stopping the others."""
    plain = write_repository(BENCH / "ensembles" / "onnx", python=False)
    python = write_repository(BENCH / "ensembles" / "python", python=True)
    triton = Triton()
    peers: dict[str, Peer] = {OWN: Backline(), SAME: Backline(), "triton": triton}
    try:
        for name, repository in ((OWN, plain), (SAME, python)):
            peers[name].start([Model("chain", repository / "chain" / "1" / "none", "INPUT0", (1, 16), 0.03)])
        triton.start_repository(python)
    except CannotRun:
        end(peers)
        raise
    return peers


def end(peers: Mapping[str, Peer]) -> None:
    for peer in peers.values():
        peer.end()


def tell(rows: list[Row]) -> bool:
    """Prints a line per case. Returns whether all claims hold."""
    columns = ("backline/s", "model.py/s", "triton/s", "p99 ms", "cpu us", "failed")
    print(f"\n{'':5} {'connections':>12} {' '.join(f'{column:>11}' for column in columns)}  times Triton")
    holds = True
    for row in rows:
        own = row.median("backline")
        rates = [
            one.requests_per_second if one is not None else math.nan
            for one in map(row.median, (OWN, SAME, "triton"))
        ]
        about = [math.nan] * 3 if own is None else [own.p99_us / 1e3, own.cpu_us, own.errors]
        numbers = " ".join(
            f"{number:11.{digits}f}"
            for number, digits in zip((*rates, *about), (0, 0, 0, 2, 1, 0), strict=True)
        )
        ratio, same = row.ratio(OWN, "triton"), row.ratio(SAME, "triton")
        kept = ratio is not None and ratio >= LEAST
        holds = holds and kept
        verdict = (
            f"{_times(ratio)} ({'at least' if kept else 'MISSED, not'} {LEAST:g}), model.py {_times(same)}"
        )
        print(f"{row.case.way.split()[0]:5} {row.case.concurrency:12} {numbers}  {verdict}")
        for name, reason in row.reasons.items():
            print(f"  {name}: {reason}")
    return holds


def _times(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{ratio:.2f}"


@click.command(context_settings={"show_default": True}, help=(__doc__ or "").splitlines()[0])
@click.option(
    "--rounds", type=click.IntRange(1), default=5, help="Number of rounds; each server has a turn in each."
)
@click.option("--seconds", type=click.FloatRange(1), default=3.0, help="Seconds per turn.")
@click.option("--protocols", default="http,grpc", help="http, grpc or both, separated by a comma.")
def main(rounds: int, seconds: float, protocols: str) -> None:
    if not (wrk.available() and h2load.available()):
        sys.exit("wrk and h2load are needed")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    model = asked()
    generators = {"http": "wrk", "grpc": "h2load"}
    cases = [
        Case(model, protocol, "binary", generators[protocol], count)
        for protocol in protocols.split(",")
        for count in CONNECTIONS
    ]
    try:
        peers = start()
    except CannotRun as error:
        sys.exit(str(error))
    try:
        print(
            "; ".join(
                f"{name}: {', '.join(map(' '.join, peer.versions.items()))}" for name, peer in peers.items()
            )
        )
        rows = measure(cases, peers, rounds=rounds, seconds=seconds, say=click.echo)
    finally:
        end(peers)
    sys.exit(0 if tell(rows) else 1)


if __name__ == "__main__":
    main()
