"""Short versions of the attacks in benchmarks/attack.py: honest clients are unaffected, memory is bounded.

`python benchmarks/attack.py` runs each for 2 s on a fresh server, and also those that are compared with valid
load of the same bodies. p99 may be higher here, because the machine may be shared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import models
from support.server import serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from attacks.arena import fight
from attacks.target import Target
from attacks.valid_load import valid_p99
from attacks.weapons import WEAPONS

DURATION = 0.7
#: Milliseconds above the p99 under valid load; 100 is the target on an otherwise idle machine.
SLACK = 400.0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A separate server, attacked in sequence."""
    repository = tmp_path_factory.mktemp("models")
    models.add1(repository)
    (repository / "add1" / "config.pbtxt").write_text("max_batch_size: 64")
    models.ident(repository)
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as process:
        yield Target(process.http_port, process.process.pid)
        assert "Traceback" not in process.output, process.output[-3000:]


@pytest.fixture(scope="module")
def control(target: Target) -> float:
    """p99 in milliseconds under valid load."""
    return valid_p99(target, 8, 0.7)


@pytest.mark.parametrize("name", [name for name, weapon in WEAPONS.items() if not weapon.compared])
def test_attack(target: Target, control: float, name: str) -> None:
    misses: list[str] = []
    for _ in range(4):  # Other programs may disturb some tries; a defect of the server fails all of them.
        missed = _misses(target, control, name)
        if not missed:
            return
        misses.append(missed)
    pytest.fail("; then ".join(misses))


def _misses(target: Target, control: float, name: str) -> str:
    result = fight(target, name, WEAPONS[name], DURATION)
    result.valid_p99 = control
    result.judge(SLACK)
    if len(result.during.calls) < 2:
        return "the honest client could hardly call"
    return f"{'; '.join(result.misses)} (the attacker got {result.spoils.summary()})" if result.misses else ""
