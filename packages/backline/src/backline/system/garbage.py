"""Keeps Python's garbage collector away from objects that live as long as the process.

A full collection visits every object, and stops all threads while it does: for 0.08 s in a server with 1,000
models, and for 0.4 s after TensorFlow has been imported. The collector cannot know which objects are
permanent. In a program that embeds an engine, the functions here do nothing, because they must not freeze
that program's objects. They take effect after `exempt_imports`, which only the command line and worker
processes call.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Final

#: The number of new objects between two collections while a server starts. With the default of Python 3.11,
#: 700, collections would take a tenth of the time in which 1,000 models are loaded.
_RARELY: Final = 250_000
#: The number of new objects between two collections once a server has started. Python's default is less than
#: the number of objects that belong to 64 requests in flight, so the collector would visit these again and
#: again: with an ensemble, that took a tenth of the time of a request.
_SERVING: Final = 5_000
#: Set once `exempt_imports` has been called. gc.get_freeze_count() would show this too, but it counts all
#: frozen objects, which takes 5 ms.
_OWN_PROCESS: Final = Event()


def exempt_imports() -> None:
    """Exempts the objects that exist now from garbage collection, and then enables the collector.

    Call this once, after the imports, and only in a process that Backline owns: a command or a worker, not a
    program that embeds an engine.
    """
    gc.freeze()
    gc.enable()
    _OWN_PROCESS.set()


def _is_own_process() -> bool:
    return _OWN_PROCESS.is_set() and gc.isenabled()


@contextmanager
def uncollected() -> Iterator[None]:
    """Exempts the objects that an import in the `with` block creates from garbage collection, because
    modules are never freed.
    """
    own = _is_own_process()
    if own:
        gc.disable()
    try:
        yield
    finally:
        if own:
            gc.freeze()
            gc.enable()


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Makes collections rare while models load in the `with` block, and then exempts the objects that the
    block created from garbage collection. From then on, collections are less frequent than by default.

    Objects that the block creates and that refer to each other in a cycle are then never freed, even after
    the models are unloaded. That takes a few kilobytes per model. Weights are not affected, because backends
    free them explicitly.
    """
    own = _is_own_process()
    before = gc.get_threshold()
    if own:
        gc.set_threshold(_RARELY, *before[1:])
    try:
        yield
    finally:
        if own:
            gc.freeze()
            gc.set_threshold(max(_SERVING, before[0]), *before[1:])
