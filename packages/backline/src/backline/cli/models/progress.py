"""Runs a change on a server, and shows its progress as bars on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from backline.cli.command import run
from backline.cli.models.entries import explain, progress_text
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex
from backline_client.values.errors import BacklineError
from backline_client.values.names import printable

#: Seconds before the first request for the progress, and between further requests. The first request comes
#: early, because many loads are short.
FIRST_POLL, POLL = 0.05, 0.25
Result = TypeVar("Result")


class Display(Protocol):
    """A way to show loads in progress."""

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
    """Runs a change on a server. Returns the result of the change, and the entries of `model` in the model
    list after the change; all entries if `model` is empty.

    Unless `quiet`, the progress of loads is shown on stderr. If a name is unknown, the error suggests the
    nearest name.
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
        await client.transport()  # loads the models, if the URL is inproc://
        try:
            result = await _shown(client, change(client), model, display)
        except BacklineError as error:
            try:
                index = await client.models()
            except BacklineError:
                raise error from None
            raise explain(error, index, model, version) from None
        except asyncio.CancelledError:
            print(
                f"\nThe change continues on {url}: backline models list shows its progress", file=sys.stderr
            )
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
            except BacklineError:  # only the display is affected: the change continues
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
    """A display that prints a line for each phase of a load, and for each tenth of a download."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], tuple[str, int]] = {}

    def update(self, loading: Sequence[ModelIndex]) -> None:
        for entry in loading:
            progress = entry.progress
            assert progress is not None
            tenth = 10 * progress.bytes_done // progress.bytes_total if progress.bytes_total else 0
            if self._shown.get((entry.name, entry.version)) != (progress.phase, tenth):
                self._shown[entry.name, entry.version] = (progress.phase, tenth)
                line = printable(f"{entry.name} {entry.version}: {progress_text(progress)}")
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Does nothing, because the printed lines remain."""


class Bars:
    """A display with a bar for each phase of each version that is loading. `close` removes the bars."""

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
            # A bar pulses as long as its total is unknown. After a download, the total is unknown again.
            if key not in self._tasks:
                self._tasks[key] = self.progress.add_task(
                    f"{entry.name} {entry.version}: {progress.phase}", total=None
                )
            self.progress.update(self._tasks[key], completed=progress.bytes_done, total=total)
        for key in [key for key in self._tasks if key not in seen]:
            self.progress.remove_task(self._tasks.pop(key))

    def close(self) -> None:
        self.progress.stop()
