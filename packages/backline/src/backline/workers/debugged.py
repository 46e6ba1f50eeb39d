"""A worker on a thread of the server's process, so that its model can be debugged there."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from backline.model import metrics
from backline.workers.child.worker import make_worker
from backline.workers.process.process import WorkerProcess
from backline_client.values.errors import Internal

#: The modules and the entries of sys.path before any model was imported. `forget_modules` does not remove
#: them.
_OWN_MODULES = frozenset(sys.modules)
_OWN_PATH = frozenset(sys.path)


class DebuggedWorker(WorkerProcess):
    """A worker that runs on a thread instead of in a process. It has no heartbeat and no timeout, and shares
    the server's output. Use it only on the event loop.

    The thread cannot be killed. If it is at a breakpoint when the worker is stopped, it is abandoned after a
    short wait.
    """

    farewell: ClassVar[float] = 0.5
    debugged: ClassVar[bool] = True
    _thread: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def alive(self) -> bool:
        return self._thread is not None and not self._ended.done()

    @property
    def resident_bytes(self) -> int:
        """Always 0, because the model's memory cannot be distinguished from the server's."""
        return 0

    async def _launch(self, *descriptors: int) -> None:
        forget_modules(Path(self.command.load.folder))
        own = [os.dup(descriptor) for descriptor in descriptors]
        self._thread = threading.Thread(
            target=self._serve, args=own, name=f"debug {self.command.load.name}", daemon=True
        )
        self._thread.start()

    def _serve(self, data: int, control: int, calls: int, arena: int) -> None:
        try:
            make_worker(data, control, calls, arena, on_end=lambda: None).serve()
        finally:
            metrics.disconnect()  # unlike a worker process, this process continues to run
            with suppress(RuntimeError):  # the server has ended, and its loop is closed
                self._loop.call_soon_threadsafe(self._finish)

    def _beat(self) -> None:
        """Does nothing, because a model at a breakpoint cannot respond to heartbeats."""

    def _look_at_memory(self) -> None:
        """Does nothing, because the memory of the process is mostly the server's."""

    def hang(self, why: str) -> None:
        """Does nothing, because a model that is being debugged may take any amount of time."""

    def kill(self, why: str) -> None:
        self._why = self._why or why
        self._finish()

    def _finish(self) -> None:
        if self._ended.done():
            return
        self._take_rest()
        self._ended.set_result(None)
        if not self._loading.done():
            self._loading.set_exception(
                Internal(f"{self.command.label} cannot be loaded: it {self._why or 'ended'}")
            )
        self._on_exit(self, self._why or "ended")


def forget_modules(folder: Path) -> None:
    """Removes the modules that were imported from a folder, and the folder's entries in sys.path, so that the
    next import reads the files again.
    """
    # Bytecode must not be cached, because a quick edit might not take effect: Python reuses the bytecode if
    # the source has the same size and the same modification time in whole seconds.
    sys.dont_write_bytecode = True
    root = str(folder.resolve()) + os.sep
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if (
            name not in _OWN_MODULES
            and not name.startswith("backline.")
            and file.startswith(root)
            and "site-packages" not in file
        ):
            del sys.modules[name]
    sys.path[:] = [place for place in sys.path if place in _OWN_PATH or not (place + os.sep).startswith(root)]
