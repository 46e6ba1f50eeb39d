"""Attacks a server while an honest client measures it: `python benchmarks/attack.py`.

Each attack lasts 2 s (`--duration`). Before, during and after it, an honest client in another process calls
add1 over HTTP and gRPC every 50 ms. The server passes if the honest client gets no error, its p99 is at most
100 ms above the p99 under valid load, the server takes at most 64 MB more memory and releases it, and the
server is idle again within 1 s. In attacks on a model that takes bodies of any size, the server may take 64
MB more than under valid load with bodies of almost 64 MiB, measured on another fresh server. The exit status
is 1 if any attack fails. Only servers on the loopback interface are attacked. On a busy machine, `--tries 3`
repeats an attack that misses a limit, on a fresh server and after another measurement of the valid load. The
row shows the last try.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from attacks.arena import MEMORY, Result, fight
from attacks.bytes_on_the_wire import ANY, HOLDER_KEY
from attacks.target import Target
from attacks.valid_load import valid_growth, valid_p99
from attacks.weapons import WEAPONS
from harness.model import write_model
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports, make_certificate

from backline.access.keys import generate_key, hash_key

COLUMNS = (
    "attack",
    "errors",
    "p50",
    "p99",
    "valid",
    "before",
    "peak",
    "after",
    "may grow",
    "CPU s",
    "idle after",
    "sent MB",
    "it got",
    "missed",
)


@dataclass(frozen=True)
class Arms:
    """How the attacked server is protected. The files for that are in `folder`."""

    folder: Path
    keys: bool
    tls: bool

    @contextmanager
    def server(self) -> Iterator[Target]:
        """Runs a new server with the models during the block."""
        port, *others = free_ports(3)
        state = self.folder / f"state-{port}"
        write_audit_log(state)
        command = [
            *serve_command(self.folder / "models", port, *others),
            *("--state-dir", str(state), "--model-control-mode", "explicit", "--load-model", "*"),
        ]
        key = ""
        if self.keys:
            key = generate_key()
            auth = self.folder / "auth.toml"
            holders = (("honest", key, ["infer"]), ("attacker", HOLDER_KEY, ["read", "manage"]))
            auth.write_text(
                "".join(
                    f'[[keys]]\nname = "{name}"\nsha256 = "{hash_key(text)}"\nscopes = {scopes}\n'
                    for name, text, scopes in holders
                )
            )
            command += ["--auth", str(auth)]
        certificate = None
        if self.tls:
            certificate, private = self.folder / "server.crt", self.folder / "server.key"
            if not certificate.exists():
                make_certificate(certificate, private)
            command += ["--ssl-certificate", str(certificate), "--ssl-key", str(private)]
        server = ServerProcess("attacked", command)
        url = f"http{'s' if self.tls else ''}://127.0.0.1:{port}/v2/health/ready"
        target = Target(port, server.process.pid, key=key, certificate=certificate)
        try:
            server.wait_until(lambda: answers_200(url, context=target.tls()))
            yield target
        finally:
            server.end()


def write_audit_log(state: Path) -> None:
    """Writes an audit log that is almost full, for attackers that read it."""
    state.mkdir(mode=0o700)
    line = {"outcome": "failed", "route": "POST /v2/models/m/promote", "identity": "a", "detail": "x" * 160}
    lines = (json.dumps({"time": 1.7e9 + number, **line}) for number in range(13_000))
    (state / "audit.jsonl").write_text("\n".join(lines) + "\n")


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
        f"{result.valid_growth + MEMORY:.0f}",
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
    help="Attack a running server on this port of 127.0.0.1, with add1, ident and any; needs --pid.",
)
@click.option("--pid", type=int, help="Process id of the server on --port.")
@click.option(
    "--keys",
    is_flag=True,
    help="The server knows keys. Honest clients have one, and the attackers of the audit log.",
)
@click.option("--tls", is_flag=True, help="The server speaks TLS.")
@click.option("--tries", default=1, show_default=True, help="How often an attack that misses is repeated.")
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
    keys: bool,
    tls: bool,
    tries: int,
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
    if port is not None and (keys or tls):
        raise click.UsageError("--keys and --tls configure a fresh server: leave out --port")
    if tries > 1 and (shared or port is not None):
        raise click.UsageError("--tries repeats an attack on a fresh server: leave out --shared and --port")
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="backline-attack-") as folder:
        arms = Arms(Path(folder), keys, tls)
        write_model(arms.folder / "models/add1/1/model.onnx", "Add", [16], 1.0)
        (arms.folder / "models/add1/config.pbtxt").write_text("max_batch_size: 64\n")
        write_model(arms.folder / "models/ident/1/model.onnx", "Identity", [3, 224, 224])
        write_model(arms.folder / f"models/{ANY}/1/model.onnx", "ReduceMax", ["M"])
        given = Target(port, pid) if port and pid else None
        results = run(names, duration, slack, arms, given, shared, tries)
    if json_path:
        json_path.write_text(json.dumps([record(result) for result in results], indent=1))
    missed = [result for result in results if result.misses]
    click.echo(
        f"\n{len(results)} attacks of {duration:g} s, {len(missed)} over a limit (times in ms, memory in MB)"
    )
    sys.exit(1 if missed else 0)


def run(
    names: list[str],
    duration: float,
    slack: float,
    arms: Arms,
    given: Target | None,
    shared: bool,
    tries: int,
) -> list[Result]:
    """Runs the attacks one after another and prints each result as a row."""
    click.echo("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    controls: dict[tuple[int, bool], float] = {}
    growths: dict[str, float] = {}
    results: list[Result] = []

    def one(target: Target, name: str, *, last: bool = True) -> bool:
        """Runs one attack. Returns False if it misses a limit and is not the last try."""
        weapon = WEAPONS[name]
        control = weapon.connections, weapon.image
        if control not in controls:
            controls[control] = valid_p99(target, weapon.connections, min(duration, 2.0), image=weapon.image)
        result = fight(target, name, weapon, duration)
        result.valid_p99 = controls[control]
        result.valid_growth = growths.get(weapon.compared, 0.0)
        result.judge(slack)
        if result.misses and not last:
            del controls[control]
            return False
        results.append(result)
        click.echo("| " + " | ".join(row(result)) + " |")
        return True

    def measure_growth(name: str, server: AbstractContextManager[Target]) -> None:
        """Measures the memory under valid load with large bodies, if an attack is compared with it."""
        weapon = WEAPONS[name]
        if weapon.compared and weapon.compared not in growths:
            with server as target:
                growths[weapon.compared] = valid_growth(target, weapon.compared, weapon.connections, duration)

    if given is not None or shared:
        with nullcontext(given) if given is not None else arms.server() as target:
            for name in names:
                measure_growth(name, nullcontext(target))
                one(target, name)
        return results
    for name in names:
        measure_growth(name, arms.server())
        for number in range(1, tries + 1):
            with arms.server() as target:
                if one(target, name, last=number == tries):
                    break
    return results


if __name__ == "__main__":
    main()
