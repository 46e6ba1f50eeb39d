"""The thread of the store. What waits while it commits shares the next transaction: group commit."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeAlias, TypeVar

from backline.plugins.dialects.jobs.job import NotDurable
from backline.plugins.dialects.jobs.store import Store
from backline_client.system.private_file import sync_folder
from backline_client.values.errors import BacklineError, Unavailable
from backline_client.values.tensor import Buffer

#: The maximum number of calls in one transaction.
_TOGETHER: Final = 256
_FULL: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"})
Result = TypeVar("Result")
_Call: TypeAlias = "tuple[Callable[[Store], Any], asyncio.Future[Any]]"
_Outcome: TypeAlias = "tuple[asyncio.Future[Any], Any, BaseException | None]"


class StoreThread:
    """Calls functions with the store, on a thread of its own. A result is returned once it is on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._store: Store | None = None

    def call(self, work: Callable[[Store], Result]) -> asyncio.Future[Result]:
        """Runs `work` in a transaction. The future fails with NotDurable if the disk is full, and with
        Unavailable if the store cannot be used. A BacklineError of `work` fails the future too; `work` must
        not have changed anything then.
        """
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._calls.put((work, future))
        return future

    async def close(self) -> None:
        """Ends the thread, after the calls so far."""
        if self._thread is not None:
            self._calls.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self) -> None:
        going = True
        while going:
            found = [self._calls.get()]
            with suppress(Empty):
                while len(found) < _TOGETHER:
                    found.append(self._calls.get_nowait())
            calls = [call for call in found if call is not None]
            going = len(calls) == len(found)
            self._deliver(self._transact(calls))
            del found, calls  # they hold the bodies of requests
        if self._store is not None:
            self._store.close()

    def _transact(self, calls: list[_Call]) -> list[_Outcome]:
        """Runs calls in one transaction. If it fails, runs each in one of its own, so that no call suffers
        for another.
        """
        outcomes: list[_Outcome] = []
        if not calls:
            return outcomes
        try:
            store = self._opened()
            with store.connection as connection:  # commits, or rolls back
                connection.execute("BEGIN IMMEDIATE")
                for work, future in calls:
                    try:
                        outcomes.append((future, work(store), None))
                    except BacklineError as error:
                        outcomes.append((future, None, error))
        except Exception as error:
            if self._store is not None:
                self._store.left_over.clear()
            if len(calls) > 1 and self._store is not None:
                return [outcome for call in calls for outcome in self._transact([call])]
            return [(future, None, _explained(error, self._folder)) for _, future in calls]
        for path in store.left_over:
            with suppress(OSError):
                path.unlink()
        store.left_over.clear()
        return outcomes

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store(self._folder)
            with self._store.connection:
                self._store.sweep_files()
        return self._store

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        if self._loop is not None and outcomes:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_set_all, outcomes)


def _set_all(outcomes: list[_Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():  # cancelled
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _explained(error: Exception, folder: Path) -> Exception:
    """Returns the error that callers see for a failed transaction."""
    name = getattr(error, "sqlite_errorname", "")
    if name in _FULL or (isinstance(error, OSError) and is_full(error)):
        return NotDurable(
            "the disk with the server's state folder is full, so this cannot be stored: ask the server's"
            " operator to free space, and try again later"
        )
    if isinstance(error, BacklineError):
        return error
    if isinstance(error, sqlite3.Error | OSError):
        return Unavailable(f"the jobs in '{folder}' cannot be used: {error}", retry_after=5)
    return error


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_durably(path: Path, body: list[Buffer]) -> None:
    """Writes a new file, and returns once the file and its name are on disk. Raises NotDurable if the disk is
    full, and then leaves no file.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for part in body:
                rest = memoryview(part).cast("B")
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise _explained(error, path.parent) from None
