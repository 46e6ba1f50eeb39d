"""The display of loads in progress."""

from __future__ import annotations

import pytest

from backline.cli.models.progress import Bars, Lines
from backline_client.client.records import ModelIndex, Progress


def loading(phase: str, done: int = 0, total: int = 0) -> list[ModelIndex]:
    return [ModelIndex("pitch", "4", "LOADING", progress=Progress(phase, 1.4, done << 20, total << 20))]


def test_lines_show_each_phase_and_tenth_of_a_download_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for entries in (
        loading("fetch", 1, 100),
        loading("fetch", 5, 100),
        loading("fetch", 50, 100),
        loading("load", 100, 100),
        loading("load", 100, 100),
        [],
        loading("warm-up"),
    ):
        lines.update(entries)
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "pitch 4: fetch, 1 MiB of 100 MiB, 1 s",
        "pitch 4: fetch, 50 MiB of 100 MiB, 1 s",
        "pitch 4: load, 1 s",
        "pitch 4: warm-up, 1 s",
    ]


def test_bars_come_and_go_with_the_loads() -> None:
    bars = Bars()
    bars.update(loading("fetch", 20, 80))
    (bar,) = bars.progress.tasks
    assert (bar.description, bar.completed, bar.total) == ("pitch 4: fetch", 20 << 20, 80 << 20)
    bars.update(loading("load", 80, 80))
    assert bars.progress.tasks[0].total is None
    bars.update([])
    assert bars.progress.tasks == []
    bars.close()
