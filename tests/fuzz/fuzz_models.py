"""Fuzzes the loading of model files: `python tests/fuzz/fuzz_models.py --files 2000 --crafted 100 --seed 1`.

Of each format, a small valid model is copied again and again with one file damaged: by bytes, by members of
an archive, or, with `--crafted`, by absurd numbers in its structure. Each copy is scanned, and then loaded,
proved, measured and warmed up as in a trial, in a process that goes on to the next copy unless it crashes.

A copy may be served, or refused with a reason. Trials contain a crash of the runtime, a load that does not
end and one that takes all memory, so these are counted and do not fail the run. Everything else is a finding:
a traceback, an error without a reason, or a scan that fails.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from time import monotonic

import click

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backline.backends.backend import LoadOptions
from backline.backends.registry import BACKENDS, FORMATS, choose
from backline.engine.errors import BacklineError
from backline.lifecycle.loading.isolation.messages import Refused, TrialJob
from backline.lifecycle.loading.isolation.trial import run_trial
from backline.repository.local import LocalRepository
from backline.system.memory import resident_bytes
from fuzz.specimens import SPECIMENS

#: Seconds that one copy may take.
PATIENCE = 20.0
#: Bytes of resident memory that a process may take beyond what it has before its first copy.
MEMORY = 1 << 30
#: Copies that one process loads, so that what one leaves behind is not blamed on many others.
PER_PROCESS = 100
TEXT = (".txt", ".xml", ".pbtxt", ".toml", ".json", "MLmodel", ".py", ".yaml")
NUMBERS = ["-1", "0", "1e999", "nan", "2147483648", "4294967295", "9223372036854775808", "1" * 400, "", "[]"]
WORDS = [-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A copy that is cut short, has a few wrong bytes, or has a part twice or not at all."""
    if not content:
        return bytes(chance.randrange(256) for _ in range(8))
    at = chance.randrange(len(content))
    match chance.randrange(4):
        case 0:
            return content[:at]
        case 1:
            size = chance.choice((1, 4, 64, 1024))
            return content[:at] + content[at + size :]
        case 2:
            size = chance.choice((1, 4, 64, 1024))
            return content[:at] + content[at : at + size] * 2 + content[at + size :]
    wrong = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        wrong[chance.randrange(len(wrong))] = chance.randrange(256)
    return bytes(wrong)


def crafted_text(content: bytes, chance: random.Random) -> bytes:
    """A copy of a text with an absurd number, a repeated line, or deep nesting."""
    text = content.decode("utf-8", "replace")
    numbers = list(re.finditer(r"-?\d+(\.\d+)?", text))
    kind = chance.randrange(4)
    if numbers and kind < 2:
        found = chance.choice(numbers)
        return (text[: found.start()] + chance.choice(NUMBERS) + text[found.end() :]).encode()
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    if kind == 2:
        return "".join([*lines[:at], lines[at] * chance.choice((2, 3000)), *lines[at + 1 :]]).encode()
    deep = chance.choice(("[", "{", "<a>", "(", "a {", '"')) * chance.choice((1, 200, 20_000))
    return "".join([*lines[:at], deep, *lines[at:]]).encode()


def crafted_bytes(content: bytes, chance: random.Random) -> bytes:
    """A copy in which a word of 4 or 8 bytes, or a varint, is an absurd number."""
    wrong = bytearray(content or bytes(16))
    word = chance.choice(WORDS)
    match chance.randrange(3):
        case 0:
            encoded = struct.pack("<Q", word % 2**64)
        case 1:
            encoded = struct.pack("<I", word % 2**32)
        case _:
            encoded, rest = b"", word % 2**64
            while rest > 127:
                encoded, rest = encoded + bytes([rest & 127 | 128]), rest >> 7
            encoded += bytes([rest])
    at = chance.randrange(len(wrong)) // 4 * 4
    wrong[at : at + len(encoded)] = encoded
    return bytes(wrong)


def within(name: str, content: bytes, chance: random.Random, crafted: bool) -> bytes:
    """A damaged copy of a file; most copies of a zip file are valid archives with a damaged member."""
    if content[:2] == b"PK" and chance.randrange(4):
        with zipfile.ZipFile(io.BytesIO(content)) as whole:
            members = [(one, whole.read(one)) for one in whole.infolist()]
        victim = chance.randrange(len(members))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", members[0][0].compress_type) as copy:
            for index, (one, held) in enumerate(members):
                copy.writestr(
                    one.filename, held if index != victim else within(one.filename, held, chance, crafted)
                )
        return packed.getvalue()
    if not crafted:
        return damaged(content, chance)
    return (crafted_text if name.endswith(TEXT) else crafted_bytes)(content, chance)


def write_copy(kind: str, model: Path, copy: Path, seed: int, number: int, crafted: bool) -> None:
    """Writes copy `number` of a model, with one file damaged."""
    chance = random.Random(f"{seed} {kind} {number} {crafted}")
    shutil.copytree(model, copy)
    configuration = copy / kind
    files = sorted(path for path in (copy / "1").rglob("*") if path.is_file())
    if configuration.exists():
        files = [configuration]
    victim = chance.choice(files)
    victim.write_bytes(within(victim.name, victim.read_bytes(), chance, crafted))


def outcome(repository: Path) -> tuple[str, str]:
    """What becomes of the only model of a repository: "served", "refused" or "finding", and the reason."""
    try:
        place = LocalRepository(repository, formats=FORMATS)
        found = asyncio.run(place.scan())
    except BacklineError as error:
        return "refused", error.message
    for model in found:
        if model.problem:
            return "refused", model.problem
        for version in model.versions:
            if version.path is None:
                return "refused", version.problem
            path = repository / version.path
            try:
                entry = choose(model.config, path)
                if entry.hosted:  # its code runs in worker processes; the server reads only what describes it
                    entry.backend().load(path, model.config, LoadOptions(may_run_code=True))
                    continue
            except BacklineError as error:
                return "refused", error.message
            options = LoadOptions(may_run_code=True, trust_skops_types=frozenset())
            job = TrialJob(path, repository / model.folder, model.config, options, repository / "recorded")
            reports: list[object] = []
            run_trial(job, reports.append)
            last = reports[-1]
            if isinstance(last, Refused):
                explained = bool(last.kind) or last.message.startswith("there is not enough memory")
                return ("refused" if explained and last.message else "finding"), last.message
    return "served", ""


@dataclass
class Tally:
    """The results for one format."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    #: The copies that a trial would have contained.
    contained: list[str] = field(default_factory=list)


def run_on(kind: str, model: Path, work: Path, seed: int, numbers: range, crafted: bool, report: int) -> None:
    """Loads the copies with these numbers and writes one line for each; ends the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for number in numbers:
        copy = work / str(number)
        write_copy(kind, model, copy / "m", seed, number, crafted)
        try:
            result = outcome(copy)
        except Exception as error:
            result = "finding", f"{type(error).__name__}: {error}"
        os.write(report, json.dumps([number, *result]).encode()[:4000].replace(b"\n", b" ") + b"\n")
        shutil.rmtree(copy, ignore_errors=True)
    os._exit(0)


def attend(pid: int, reports: int, on_line: Callable[[str], None]) -> str:
    """Reads the reports of a process until it ends, and ends it if it hangs or takes too much memory.

    Returns how it ended: "" if it came to its end.
    """
    ready, rest, heard, ended = select.poll(), b"", monotonic(), ""
    ready.register(reports, select.POLLIN)
    shared = resident_bytes(pid)
    while True:
        if ready.poll(50):
            data = os.read(reports, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                on_line(line.decode("utf-8", "replace"))
            heard = monotonic()
        elif not ended and monotonic() - heard > PATIENCE:
            ended = "stopped after 20 s"
        elif not ended and resident_bytes(pid) - shared > MEMORY:
            ended = "stopped at 1 GiB"
        else:
            continue
        if ended:
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return ended or ("" if code == 0 else f"crashed ({signal.Signals(-code).name if code < 0 else code})")


def campaign(kind: str, model: Path, work: Path, seed: int, count: int, crafted: bool) -> Tally:
    """Loads `count` copies of a model."""
    tally, number = Tally(), 0

    def on_line(line: str) -> None:
        nonlocal number
        try:
            at, result, why = json.loads(line)
        except ValueError:  # cut
            at, result, why = number, "refused", line
        number = at + 1
        tally.counts[result] += 1
        if result == "finding":
            option = " --crafted 1" if crafted else ""
            tally.findings.append(f"{kind} {at} (seed {seed}{option}): {why[:300]}")

    while number < count:
        own, given = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(own)
            run_on(kind, model, work, seed, range(number, min(count, number + PER_PROCESS)), crafted, given)
        os.close(given)
        ended = attend(pid, own, on_line)
        os.close(own)
        if ended:
            tally.counts[ended] += 1
            tally.contained.append(f"{number}{' crafted' if crafted else ''} {ended}")
            shutil.rmtree(work / str(number), ignore_errors=True)
            number += 1
    return tally


def build(kind: str, folder: Path) -> None:
    """Builds a specimen in a separate process, as some frameworks cannot be forked once they have run."""
    command = [sys.executable, str(Path(__file__).with_name("specimens.py")), kind, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def one_format(kind: str, seed: int, files: int, crafted: int) -> int:
    """Runs the campaign of one format in this process, prints its row, and returns the number of findings."""
    entries = {entry.name: entry for entry in BACKENDS}
    specimen = SPECIMENS[kind]
    with tempfile.TemporaryDirectory(prefix="backline-fuzz-") as folder:
        model = Path(folder) / "valid" / "m"
        build(kind, model)
        for module in entries[specimen.backend].modules:
            import_module(module)
        began = monotonic()
        healthy = outcome_in_child(model.parent)
        tallies = [
            campaign(kind, model, Path(folder) / "copies", seed, count, crafted=by_hand)
            for count, by_hand in ((files, False), (crafted, True))
        ]
    counts = sum((tally.counts for tally in tallies), Counter[str]())
    findings = [finding for tally in tallies for finding in tally.findings]
    if healthy != "served":
        findings.insert(0, f"{kind}: the valid model is not served: {healthy}")
    told = ", ".join(f"{count} {what}" for what, count in counts.most_common())
    click.echo(f"{kind}: {files} damaged, {crafted} crafted: {told} in {monotonic() - began:.0f} s")
    contained = [one for tally in tallies for one in tally.contained]
    if contained:
        click.echo(f"  contained: {', '.join(contained[:10])}")
    for finding in findings[:5]:
        click.echo(f"  {finding}")
    return len(findings)


def outcome_in_child(repository: Path) -> str:
    own, given = os.pipe()
    pid = os.fork()
    if not pid:
        result, why = outcome(repository)
        os.write(given, (result if result == "served" else why)[:4000].encode())
        os._exit(0)
    os.close(given)
    os.waitpid(pid, 0)
    with os.fdopen(own, "rb") as answer:
        return answer.read().decode()


@click.command(help=__doc__)
@click.option("--files", default=2000, show_default=True, help="Damaged copies of each format.")
@click.option("--crafted", default=100, show_default=True, help="Crafted copies of each format.")
@click.option("--seed", default=1, show_default=True)
@click.option("--format", "kinds", multiple=True, type=click.Choice(list(SPECIMENS)), help="Repeatable.")
def main(files: int, crafted: int, seed: int, kinds: tuple[str, ...]) -> None:
    kinds = kinds or tuple(SPECIMENS)
    if len(kinds) == 1:
        sys.exit(1 if one_format(kinds[0], seed, files, crafted) else 0)
    found = 0
    for kind in kinds:  # each with its own runtime
        options = ("--files", str(files), "--crafted", str(crafted), "--seed", str(seed), "--format", kind)
        found += subprocess.run([sys.executable, __file__, *options], check=False).returncode
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
