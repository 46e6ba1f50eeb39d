"""Shared fixtures: one server process with the small models, and an event loop for coroutine tests."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support import models
from support.server import ServerProcess, serve

#: Files that take longest, by their measured time. A run begins with them, so that no process is left alone
#: with one at the end. Of the others, those with the most tests come first.
LONGEST = (
    "backends/test_formats.py",
    "server/test_stock_tools.py",
    "backends/test_file_operations.py",
    "conformance/test_attacks.py",
    "backends/test_torchserve.py",
    "under_load/test_changes_under_load.py",
    "server/test_hostile_files.py",
    "long_day/test_long_day.py",
    "backends/test_pytorch.py",
    "schedule/test_every_order.py",
    "examples/test_transcription_end_to_end.py",
    "backends/test_damaged_trees.py",
    "server/test_scope_matrix.py",
    "cli/test_commands.py",
    "server/test_bad_models.py",
    "examples/test_music_service.py",
    "repository/remote/test_serving.py",
    "backends/test_litert.py",
    "backends/test_untrusted.py",
    "docs/test_tutorial.py",
    "benchmarks/test_memory_mix.py",
    "backends/test_tensorflow.py",
    "fuzz/test_orders.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files by how long they take, as far as known; tests of a file stay together, in their order."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (places.get(item.path, len(places)), -sizes[item.path], item.path))


#: How long an example takes depends on what else runs on the machine.
settings.register_profile("any machine", deadline=None, max_examples=50)
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Gives processes that tests start the default action for signals that nohup or a shell script ignores.

    A process inherits ignored signals, but not handlers: with a handler that does nothing, this process still
    survives the signal, and its children do not ignore it.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test skipped for a missing tool where every tool must be installed, as in CI."""
    report = yield
    if report.skipped and "not installed" in str(report.longrepr) and os.environ.get("TESTS_REQUIRE_TOOLS"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a coroutine test in a fresh event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 60))
    return True


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with add1, ident and slow."""
    repository = tmp_path_factory.mktemp("repository")
    models.add1(repository)
    models.ident(repository)
    models.slow(repository)
    return repository


@pytest.fixture(scope="session")
def server(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A shared server for read-only tests; a test that stops or overloads its server starts another."""
    with serve(model_repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running
