"""Changing models under load affects no request."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.server import serve
from under_load.changes import Deployment
from under_load.run import run
from under_load.stores import FolderStore

#: Covers each kind of change more than once; `python -m under_load` makes the full 200.
CHANGES = 40


@pytest.mark.timeout(300)
def test_changes_in_a_folder_lose_no_request(tmp_path: Path) -> None:
    deployment = Deployment(FolderStore(tmp_path / "models"))
    deployment.lay_out()
    with serve(
        tmp_path / "models",
        tmp_path / "log",
        "--model-control-mode",
        "poll",
        "--repository-poll-secs",
        "0.2",
        "--state-dir",
        str(tmp_path),
    ) as server:
        outcome = run(server, deployment, CHANGES)
        assert server.stop() == 0
    print(outcome)
    assert outcome.errors == []
    assert outcome.wrong == []
    assert sum(outcome.changes.values()) == CHANGES
    assert outcome.constants > 8
    assert "Traceback" not in server.output


def test_the_timeline_knows_the_valid_answers_to_a_request() -> None:
    from under_load.timeline import Timeline

    timeline = Timeline()
    timeline.begin("stable", 1, now=0)
    timeline.begin("stable", 2, now=10)
    timeline.settle("stable", 2, now=11)
    assert timeline.allowed("stable", 8, 9) == {1}
    assert timeline.allowed("stable", 9, 10.5) == {1, 2}
    assert timeline.allowed("stable", 12, 13) == {2}
