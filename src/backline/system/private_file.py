"""Keeps keys and state private: creates files that only their owner may read, and removes keys from
environments.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Creates an empty file with mode 0600, which replaces `path` at the end of the `with` block.

    If the block raises, `path` does not change. A reader never sees a partly written file. Raises OSError.
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
    """Creates a file with mode 0600; serves as the `opener` of `open`. An existing file keeps its mode."""
    return os.open(path, flags, 0o600)


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns a copy of the environment without the keys of server and client, for processes that run
    models.
    """
    return {
        name: value
        for name, value in environment.items()
        if not (name == "BACKLINE_KEY" or (name.startswith("BACKLINE_") and name.endswith("_KEY")))
    }
