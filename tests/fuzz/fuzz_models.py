"""Fuzzes the loading of model files: `python tests/fuzz/fuzz_models.py --files 2000 --crafted 100 --seed 1`.

Of each format, a small valid model is copied again and again with one file damaged (damage.py). A server that
tries model files in separate processes is asked to load the copies, several at once. It answers one request
to each copy that it serves, and unloads it.

A copy may be served, or refused with a reason. Requests to a copy that is served may fail with the runtime's
reason, as some damage shows only there. Trials contain a crash of the runtime, a load that does not
end and one that takes all memory, so these are counted and do not fail the run. Everything else is a finding:
an error without a reason, a status of 500 or above, no answer, a traceback in the log, or the server's end.

Meanwhile, an honest client in another process calls a valid model of the same server over HTTP and gRPC every
50 ms. It may get no error. Every 6 s, the loads stop for 2 s, and its p99 while copies are loaded may exceed
its p99 in these pauses by at most 50 ms.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import Any

import click
import psutil

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.damage import write_copy
from fuzz.side_by_side import Target, Turns, side_by_side
from fuzz.specimens import SPECIMENS
from support import models
from support.server import ServerProcess, serve

MIB = 1 << 20
#: Copies that are loaded at once.
LOADS = 4
#: Seconds within which the server must answer. A trial is stopped after 20 s.
PATIENCE = 120.0
#: A damaged configuration may ask for a wait of years, so requests to such models have a deadline.
CONFIGURATIONS = ("config.pbtxt", "model.toml")
NO_HEADERS: Mapping[str, str] = {}
DEADLINE = {"grpc-timeout": "10S"}
OPTIONS = (
    "--model-control-mode=explicit",
    "--load-model=add1",
    "--isolate=new",
    f"--model-load-thread-count={LOADS}",
    "--load-timeout-secs=20",
    f"--load-memory-limit={1 << 30}",
    "--no-strict-readiness",
)
#: Why a load has failed that would have harmed the server, had there been no trial.
CONTAINED = {
    "crashed": re.compile(r" crashed while | was killed, perhaps because the"),
    "did not end": re.compile(r" did not finish .* so its process was killed"),
    "took all memory": re.compile(r" used more than .* of memory while "),
}
#: The name of an exception, at the beginning of the reason of a load, that no code expected.
UNEXPECTED = re.compile(r"at UNAVAILABLE state: \w*(?:[Ee]rror|Exception|Exit|Iteration): ")
#: Why a request to a loaded model may get no result if its configuration is damaged: it asks for a version
#: that is not there, or for a longer wait than the request's deadline allows.
CONFIGURED = re.compile(
    r"label '[^']*' points to version .* which no repository holds|The deadline of the request"
)
#: How the error of a request begins if the runtime cannot run the model.
FAILED = re.compile(r"model '[\w.]+' failed: ")
#: The same for a model that is Python code, whose handler may raise an exception.
CODE_FAILED = re.compile(r"model '[\w.]+' version 1 failed: ")
TRACEBACK = "Traceback (most recent call last)"
#: What a traceback shows if the handler of an archive, which is the user's code, raised the exception.
HANDLER = re.compile(r"import_module\(module_name\)|entry\(None, context\)|classes\[0\]\(\)|self\._handle\(")
#: Where a record of the log begins; the further lines of a record are indented.
RECORD = re.compile(r"^(?=\S)", re.MULTILINE)
#: The most elements of an input of a served copy that a request is made for.
MOST_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answers; status 0 if it does not."""

    status: int
    text: str

    @property
    def error(self) -> str:
        """The reason in an error; "" if there is none."""
        try:
            return str(json.loads(self.text)["error"])
        except (ValueError, KeyError, TypeError):
            return ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a copy: "served", "failing", "refused", a key of CONTAINED or "finding", and why."""

    kind: str
    reason: str = ""


def ask(
    url: str, body: object = None, method: str = "POST", headers: Mapping[str, str] = NO_HEADERS
) -> Answer:
    data = json.dumps(body).encode() if body is not None else b"" if method == "POST" else None
    named = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode())
    except (OSError, HTTPException) as error:
        return Answer(0, f"{type(error).__name__}: {error}")


def outcome_of_load(answer: Answer) -> Outcome:
    """What the answer to a load says about the file."""
    if answer.status == 200:
        return Outcome("served")
    reason = answer.error
    for kind, pattern in CONTAINED.items():
        if pattern.search(reason):
            return Outcome(kind, reason)
    if 400 <= answer.status < 500 and reason and not UNEXPECTED.search(reason):
        return Outcome("refused", reason)
    return Outcome("finding", f"the load gets status {answer.status}: {answer.text}")


def outcome_of_request(answer: Answer, *, code: bool = False) -> Outcome:
    """What the answer to a request says about the file of a served model, which may be Python `code`."""
    if answer.status == 200:
        return Outcome("served")
    if 400 <= answer.status < 500 and answer.error:
        return Outcome("served", answer.error)
    if answer.status in (503, 504) and CONFIGURED.search(answer.error):
        return Outcome("served", answer.error)
    if FAILED.match(answer.error) or (code and CODE_FAILED.match(answer.error)):
        return Outcome("failing", answer.error)
    return Outcome("finding", f"a request gets status {answer.status}: {answer.text}")


def traceback_in(printed: str) -> str:
    """A log from its first traceback on that does not lead into the handler of an archive; "" without one."""
    begin = 0
    for record in RECORD.split(printed):
        if TRACEBACK in record and not HANDLER.search(record):
            return printed[begin:]
        begin += len(record)
    return ""


def zeros(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """A request with zeros or empty strings for all inputs; None if they are too large."""
    inputs = []
    for one in metadata["inputs"]:
        shape = [1 if size == -1 else size for size in one["shape"]]
        count = math.prod(shape)
        if count > MOST_ELEMENTS:
            return None
        element: object = {"BYTES": "", "BOOL": False}.get(one["datatype"], 0)
        inputs.append({**one, "shape": shape, "data": [element] * count})
    return {"inputs": inputs}


@dataclass
class Tally:
    """The results for one format."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    #: The copies that would have harmed the server, had there been no trial, and those that only fail.
    noted: list[str] = field(default_factory=list)


class Campaign:
    """Loads damaged copies of the model in `folder`/valid into a server."""

    def __init__(self, kind: str, seed: int, folder: Path, server: ServerProcess) -> None:
        self._kind = kind
        self._seed = seed
        self._folder = folder
        self._server = server
        self._log_read = 0
        self.tally = Tally()

    @property
    def alive(self) -> bool:
        return self._server.process.poll() is None

    @property
    def memory(self) -> float:
        """The server's resident memory in MiB, without its other processes."""
        return psutil.Process(self._server.process.pid).memory_info().rss / MIB if self.alive else 0.0

    def load_valid(self) -> None:
        """Loads the valid model."""
        outcome = self._load("valid", lambda folder: shutil.copytree(self._folder / "valid" / "m", folder))
        if outcome.kind != "served" or outcome.reason:
            self.tally.findings.append(f"the valid model is not served: {outcome.reason}")

    async def run(self, numbers: range, turns: Turns, *, crafted: bool) -> None:
        """Loads the copies with these numbers. Stops now and then for the honest client."""
        waiting = deque(numbers)
        while waiting and self.alive:
            async with asyncio.TaskGroup() as group:
                for slot in range(LOADS):
                    group.create_task(self._load_copies(f"copy{slot}", waiting, turns, crafted=crafted))
            self._read_log(len(numbers) - len(waiting))
            await turns.alone()

    async def _load_copies(self, name: str, waiting: deque[int], turns: Turns, *, crafted: bool) -> None:
        while waiting and self.alive and not turns.over:
            number = waiting.popleft()

            def write(folder: Path, number: int = number) -> None:
                write_copy(self._kind, self._folder / "valid" / "m", folder, self._seed, number, crafted)

            outcome = await asyncio.to_thread(self._load, name, write)
            self.tally.counts[outcome.kind] += 1
            where = f"--first {number} {'--files 0 --crafted 1' if crafted else '--files 1 --crafted 0'}"
            if outcome.kind == "finding":
                self.tally.findings.append(f"{where}: {outcome.reason[:600]}")
            elif outcome.kind in CONTAINED or outcome.kind == "failing":
                self.tally.noted.append(f"{outcome.kind}: {where}: {outcome.reason[-200:]}")

    def _load(self, name: str, write: Callable[[Path], object]) -> Outcome:
        """Loads a model; if it is served, sends one request and unloads it. `write` writes its folder."""
        made, served = self._folder / "made" / name, self._folder / "repository" / name
        made.parent.mkdir(exist_ok=True)
        write(made)
        made.rename(served)  # at once, as the server reads the repository at any time
        change = f"{self._server.url}/v2/repository/models/{name}"
        try:
            outcome = outcome_of_load(ask(f"{change}/load"))
            if outcome.kind == "served":
                outcome = self._request(name)
                unloaded = ask(f"{change}/unload")
                if unloaded.status != 200:
                    return Outcome("finding", f"the unload gets status {unloaded.status}: {unloaded.text}")
            return outcome
        finally:
            served.rename(made)
            shutil.rmtree(made)

    def _request(self, name: str) -> Outcome:
        model = f"{self._server.url}/v2/models/{name}"
        metadata = ask(model, method="GET")
        if metadata.status != 200:
            return outcome_of_request(metadata)
        request = zeros(json.loads(metadata.text))
        if request is None:
            return Outcome("served")
        answer = ask(
            f"{model}/infer", request, headers=DEADLINE if self._kind in CONFIGURATIONS else NO_HEADERS
        )
        return outcome_of_request(answer, code=self._kind == "mar")

    def _read_log(self, number: int) -> None:
        """Looks for tracebacks in what the server has printed since the last look."""
        with self._server.log.open("rb") as log:
            log.seek(self._log_read)
            printed = log.read().decode("utf-8", "replace")
            self._log_read = log.tell()
        if said := traceback_in(printed):
            self.tally.findings.append(f"a traceback in the log, up to copy {number}:\n{said[:3000]}")
        if not self.alive:
            status = self._server.process.returncode
            self.tally.findings.append(f"the server ended with status {status}:\n{printed[-3000:]}")


def build(kind: str, folder: Path) -> None:
    """Builds a specimen in another process, so that this one imports no frameworks."""
    command = [sys.executable, str(Path(__file__).with_name("specimens.py")), kind, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def one_format(kind: str, seed: int, first: int, files: int, crafted: int) -> int:
    """Runs the campaign of one format, prints its results, and returns the number of findings."""
    with tempfile.TemporaryDirectory(prefix="backline-fuzz-") as temporary:
        folder = Path(temporary)
        build(kind, folder / "valid" / "m")
        models.add1(folder / "repository")
        folders = (f"--state-dir={folder / 'state'}", f"--cache-dir={folder / 'cache'}")
        with serve(folder / "repository", folder / "log", *OPTIONS, *folders) as server:
            campaign = Campaign(kind, seed, folder, server)
            await asyncio.to_thread(campaign.load_valid)
            before, began = campaign.memory, monotonic()
            async with side_by_side(Target(server.http_port, server.process.pid)) as turns:
                await campaign.run(range(first, first + files), turns, crafted=False)
                await campaign.run(range(first, first + crafted), turns, crafted=True)
            seconds, grown = monotonic() - began, campaign.memory - before
    tally, comparison = campaign.tally, turns.comparison
    findings = [*tally.findings, *comparison.complaints()]
    counts = ", ".join(f"{count} {what}" for what, count in tally.counts.most_common())
    click.echo(f"{kind}: {files} damaged, {crafted} crafted: {counts} in {seconds:.0f} s, {grown:+.0f} MB")
    click.echo(f"  honest client: {comparison}")
    for one in tally.noted[:20]:
        click.echo(f"  {one}")
    for finding in findings[:10]:
        click.echo(f"  FINDING --format {kind} --seed {seed} {finding}")
    return len(findings)


@click.command(help=__doc__)
@click.option("--files", default=2000, show_default=True, help="Damaged copies of each format.")
@click.option("--crafted", default=100, show_default=True, help="Crafted copies of each format.")
@click.option("--first", default=0, show_default=True, help="Number of the first copy.")
@click.option("--seed", default=1, show_default=True)
@click.option("--format", "kinds", multiple=True, type=click.Choice(list(SPECIMENS)), help="Repeatable.")
def main(files: int, crafted: int, first: int, seed: int, kinds: tuple[str, ...]) -> None:
    found = [asyncio.run(one_format(kind, seed, first, files, crafted)) for kind in kinds or SPECIMENS]
    sys.exit(1 if any(found) else 0)


if __name__ == "__main__":
    main()
