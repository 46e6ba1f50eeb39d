"""Attacks a server while an honest client measures it: `python benchmarks/attack.py`.

Each attack lasts 2 s (`--duration`). Before, during and after it, an honest client in another process calls
add1 over HTTP and gRPC every 50 ms. The server passes if the honest client gets no error, its p99 is at most
100 ms above the p99 under valid load, the server takes at most 64 MB more memory and releases it, and the
server is idle again within 1 s. The exit status is 1 if any attack fails. Only servers on the loopback
interface are attacked.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from attacks.arena import Result, Target, fight
from attacks.valid_load import valid_p99
from attacks.weapons import WEAPONS
from harness.model import write_model
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports

COLUMNS = (
    "attack",
    "errors",
    "p50",
    "p99",
    "valid",
    "before",
    "peak",
    "after",
    "CPU s",
    "idle after",
    "sent MB",
    "it got",
    "missed",
)


@contextmanager
def own_server(repository: Path) -> Iterator[Target]:
    """A fresh server with add1 and ident."""
    port, *others = free_ports(3)
    server = ServerProcess("attacked", serve_command(repository, port, *others))
    try:
        server.wait_until(lambda: answers_200(f"http://127.0.0.1:{port}/v2/health/ready"))
        yield Target(port, server.process.pid)
    finally:
        server.end()


def allow_many_files() -> None:
    """Raises the limit of open files, which the attacker and the server inherit, for 2,000 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 8192:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (8192 if hard == resource.RLIM_INFINITY else min(8192, hard), hard)
        )


def row(result: Result) -> list[str]:
    watch, log = result.watch, result.during
    idle = "never" if watch.idle_after is None else f"{watch.idle_after:.1f} s"
    return [
        result.name,
        str(len(result.errors)),
        f"{log.quantile(0.5):.1f}",
        f"{log.quantile(0.99):.1f}",
        f"{result.valid_p99:.1f}",
        f"{watch.before:.0f}",
        f"{watch.peak:.0f}",
        f"{watch.after:.0f}",
        f"{watch.cpu:.2f}",
        idle,
        f"{result.spoils.sent / 1e6:.1f}",
        f"{result.spoils.summary()} ({result.spoils.connections} connections)",
        "; ".join(result.misses) or "-",
    ]


def record(result: Result) -> dict[str, Any]:
    cells = dict(zip(COLUMNS, row(result), strict=True))
    return cells | {
        "misses": result.misses,
        "calls": len(result.during.calls),
        "got": dict(result.spoils.got),
    }


@click.command(help=__doc__)
@click.option("--duration", default=2.0, show_default=True, help="Seconds per attack.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only attacks whose name contains this; repeatable.",
)
@click.option(
    "--slack",
    default=100.0,
    show_default=True,
    help="Milliseconds that p99 may exceed the p99 under valid load.",
)
@click.option(
    "--port",
    type=int,
    help="Attack a running server on this port of 127.0.0.1, with add1 and ident; needs --pid.",
)
@click.option("--pid", type=int, help="Process id of the server on --port.")
@click.option("--shared", is_flag=True, help="Use one server for all attacks instead of a fresh one each.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Also write the results to this file."
)
@click.option("--list", "list_only", is_flag=True, help="List the attacks.")
def main(
    duration: float,
    only: tuple[str, ...],
    slack: float,
    port: int | None,
    pid: int | None,
    shared: bool,
    json_path: Path | None,
    list_only: bool,
) -> None:
    names = [name for name in WEAPONS if not only or any(part.lower() in name.lower() for part in only)]
    if list_only:
        click.echo("\n".join(names))
        return
    if not names:
        raise click.UsageError(f"no attack matches {', '.join(only)}; --list shows them")
    if (port is None) != (pid is None):
        raise click.UsageError("--port and --pid go together: give both or neither")
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="backline-attack-") as folder:
        write_model(Path(folder) / "add1/1/model.onnx", "Add", [16], 1.0)
        write_model(Path(folder) / "ident/1/model.onnx", "Identity", [3, 224, 224])
        results = run(
            names, duration, slack, Path(folder), Target(port, pid) if port and pid else None, shared
        )
    if json_path:
        json_path.write_text(json.dumps([record(result) for result in results], indent=1))
    missed = [result for result in results if result.misses]
    click.echo(
        f"\n{len(results)} attacks of {duration:g} s, {len(missed)} over a limit (times in ms, memory in MB)"
    )
    sys.exit(1 if missed else 0)


def run(
    names: list[str], duration: float, slack: float, repository: Path, given: Target | None, shared: bool
) -> list[Result]:
    """Runs the attacks one after another and prints each result as a row."""
    click.echo("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    controls: dict[int, float] = {}
    results: list[Result] = []

    def one(target: Target, name: str) -> None:
        weapon = WEAPONS[name]
        if weapon.connections not in controls:
            controls[weapon.connections] = valid_p99(target, weapon.connections, min(duration, 2.0))
        result = fight(target, name, weapon, duration)
        result.valid_p99 = controls[weapon.connections]
        result.judge(slack)
        results.append(result)
        click.echo("| " + " | ".join(row(result)) + " |")

    if given is not None or shared:
        with given_or_own(given, repository) as target:
            for name in names:
                one(target, name)
        return results
    for name in names:
        with own_server(repository) as target:
            one(target, name)
    return results


@contextmanager
def given_or_own(given: Target | None, repository: Path) -> Iterator[Target]:
    if given is not None:
        yield given
        return
    with own_server(repository) as target:
        yield target


if __name__ == "__main__":
    main()
