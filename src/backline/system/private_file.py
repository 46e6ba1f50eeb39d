"""Keeps keys and state private: files that only their owner may read, environments without keys."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A new, empty file with mode 0600, which takes the place of `path` at the end of a `with` block.

    If the block raises, `path` stays as it was. Nobody ever reads half of the file. Raises OSError.
    """
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    os.close(handle)
    new = Path(temporary)
    try:
        yield new
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def private(path: str, flags: int) -> int:
    """An `opener` for `open` that creates files with mode 0600. A file that exists keeps its mode."""
    return os.open(path, flags, 0o600)


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the keys of server and client, for processes that run models."""
    return {
        name: value
        for name, value in environment.items()
        if not (name == "BACKLINE_KEY" or (name.startswith("BACKLINE_") and name.endswith("_KEY")))
    }
