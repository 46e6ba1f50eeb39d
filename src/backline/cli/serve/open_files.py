"""The open files that the system allows a process, against the connections that the server wants."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from backline.wire.limits import Limits

log = logging.getLogger("backline.serve")

#: Open files that are no connections: models, worker processes, the log, libraries that are imported late.
RESERVED = 256


def within_open_files(limits: Limits) -> Limits:
    """The limits with as many connections as fit, after the process has been allowed as many open files as they need, if it may be.

    Connections for which there is no file could not even be refused, and a model could not be read.
    """
    if sys.platform == "win32":
        return limits
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.max_connections + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS allows less than it says
            pass
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    fitting = max(soft - RESERVED, soft // 2, 1)
    log.warning(
        "the system allows this process %d open files, so there are at most %d connections, not %d: raise its limit (ulimit -n %d)",
        soft,
        fitting,
        limits.max_connections,
        needed,
    )
    return replace(limits, max_connections=fitting)
