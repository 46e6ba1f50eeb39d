"""Shared fixtures: one server process with the small models, and an event loop for coroutine tests."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from support import models
from support.server import ServerProcess, serve


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
    if (
        report.skipped
        and "not installed" in str(report.longrepr)
        and os.environ.get("BACKLINE_TESTS_REQUIRE_TOOLS")
    ):
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
