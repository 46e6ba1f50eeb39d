"""A change of a server's models, and how far it is while it runs: drawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from backline.cli.command import run
from backline.cli.models.entries import explain, progress_text
from backline.client.aio import AsyncClient
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex
from backline.engine.errors import BacklineError

#: Between two looks at the list of models, in seconds: short at first, as many loads are.
FIRST_POLL, POLL = 0.05, 0.25
Result = TypeVar("Result")


class Display(Protocol):
    """Shows the loads that are under way."""

    def update(self, loading: Sequence[ModelIndex]) -> None: ...

    def close(self) -> None: ...


def run_change(
    url: str,
    options: ClientOptions,
    change: Callable[[AsyncClient], Awaitable[Result]],
    *,
    model: str = "",
    version: str = "",
    quiet: bool = False,
) -> tuple[Result, list[ModelIndex]]:
    """Runs a change to its end. Returns its result, and the entries of `model` (of all without one) in the list after it.

    While it runs, the loads of the model are shown on stderr, unless `quiet`. An error about a name gets the nearest known one.
    """
    return run(_run_change(url, options, change, model, version, None if quiet else _display()))


async def _run_change(
    url: str,
    options: ClientOptions,
    change: Callable[[AsyncClient], Awaitable[Result]],
    model: str,
    version: str,
    display: Display | None,
) -> tuple[Result, list[ModelIndex]]:
    async with AsyncClient(url, options) as client:
        await client.transport()  # an inproc:// URL loads its models now
        try:
            result = await _shown(client, change(client), model, display)
        except BacklineError as error:
            try:
                index = await client.models()
            except BacklineError:
                raise error from None
            raise explain(error, index, model, version) from None
        except asyncio.CancelledError:
            print(f"\nThe change goes on in {url}: backline models list tells how far it is", file=sys.stderr)
            raise
        finally:
            if display is not None:
                display.close()
        return result, [entry for entry in await client.models() if model in ("", entry.name)]


async def _shown(
    client: AsyncClient, change: Awaitable[Result], model: str, display: Display | None
) -> Result:
    running = asyncio.ensure_future(change)
    pause = FIRST_POLL
    try:
        while display is not None and not (await asyncio.wait((running,), timeout=pause))[0]:
            pause = POLL
            try:
                index = await client.models()
            except BacklineError:  # it is only shown: what counts is the change's own end
                continue
            display.update(
                [entry for entry in index if entry.progress is not None and model in ("", entry.name)]
            )
        return await running
    finally:
        running.cancel()


def _display() -> Display:
    return Bars() if sys.stderr.isatty() else Lines()


class Lines:
    """A line for each phase of a load, and for each tenth of what is fetched."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[str, int]] = {}

    def update(self, loading: Sequence[ModelIndex]) -> None:
        for entry in loading:
            progress = entry.progress
            assert progress is not None
            tenth = 10 * progress.bytes_done // progress.bytes_total if progress.bytes_total else 0
            if self._told.get((entry.name, entry.version)) != (progress.phase, tenth):
                self._told[entry.name, entry.version] = (progress.phase, tenth)
                print(f"{entry.name} {entry.version}: {progress_text(progress)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left to do: lines stay."""


class Bars:
    """A bar for the phase of each version that loads; gone when all have ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.progress.start()
        self._tasks: dict[tuple[str, str, str, int | None], Any] = {}

    def update(self, loading: Sequence[ModelIndex]) -> None:
        seen = set()
        for entry in loading:
            progress = entry.progress
            assert progress is not None
            total = progress.bytes_total if progress.bytes_done < progress.bytes_total else None
            key = (entry.name, entry.version, progress.phase, total)
            seen.add(key)
            # Without a total the bar pulses: there is nothing to fetch any more, or it is not known how much.
            if key not in self._tasks:
                self._tasks[key] = self.progress.add_task(
                    f"{entry.name} {entry.version}: {progress.phase}", total=None
                )
            self.progress.update(self._tasks[key], completed=progress.bytes_done, total=total)
        for key in [key for key in self._tasks if key not in seen]:
            self.progress.remove_task(self._tasks.pop(key))

    def close(self) -> None:
        self.progress.stop()
