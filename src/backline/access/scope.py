"""What a route lets its caller do. Every route and every gRPC method names one when it is registered."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """A route has the scope of the strongest thing that it can do, so that one which reads and writes is not READ."""

    #: Run models.
    INFER = "infer"
    #: Ask for health, metadata, configurations, statistics and settings.
    READ = "read"
    METRICS = "metrics"
    #: Change which models and versions are served, and from which shared memory.
    MANAGE = "manage"
    #: Change the server: its log, its traces, what it records of requests.
    ADMIN = "admin"


#: The scopes whose routes change something that outlives the request.
CHANGING = frozenset((Scope.MANAGE, Scope.ADMIN))
#: The scopes that a web page may not have: the above, and running models, which costs compute.
GUARDED = CHANGING | {Scope.INFER}
