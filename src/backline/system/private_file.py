"""Files that only their owner may read, replaced in one step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_private(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Writes a file with mode 0600. Whoever reads it sees the old or the new content, never a part.

    `check` may refuse the new file by raising an exception; then the old one stays. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        if check is not None:
            check(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
