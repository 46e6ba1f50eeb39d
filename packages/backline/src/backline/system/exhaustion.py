"""Recognises errors which mean that this process, its user or the machine has reached a system limit."""

from __future__ import annotations

import errno
from typing import Final

_THREADS: Final = (
    "no more threads or processes can be started: raise the limit of the user (ulimit -u) or of the"
    " container (pids.max)"
)
_LIMITS: Final = {
    errno.EAGAIN: _THREADS,
    errno.EMFILE: "this process may not open more files: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine may not open more files: raise the limit (sysctl fs.file-max)",
    errno.EFBIG: "a file may not become that large: raise the limit on the size of files (ulimit -f)",
}


def exhausted(error: BaseException) -> str:
    """Returns which limit was reached, and how to raise it; an empty string if the error has another cause.

    The cause of an EAGAIN is assumed to be the start of a thread or process.
    """
    if isinstance(error, OSError):
        return _LIMITS.get(error.errno or 0, "")
    # Python's own error, which has no errno (_thread.start_new_thread).
    return _THREADS if isinstance(error, RuntimeError) and "can't start new thread" in str(error) else ""
