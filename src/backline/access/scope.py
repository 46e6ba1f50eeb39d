"""The scopes, which say what a route or gRPC method lets its caller do. Each is registered with one."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """A permission. A route needs the scope of the most powerful thing it can do: if it writes, not READ."""

    #: Ask whether the server lives and is ready. Every caller may: orchestrators' probes have no keys.
    HEALTH = "health"
    #: Fetch what is the same for every caller and holds no data, such as the files of the console.
    PUBLIC = "public"
    #: Run models.
    INFER = "infer"
    #: See metadata, configurations, statistics and settings.
    READ = "read"
    METRICS = "metrics"
    #: Change which models and versions are served, and register shared memory.
    MANAGE = "manage"
    #: Change the server: its log, its traces, its recordings of requests.
    ADMIN = "admin"


#: The scopes that need no credentials: every caller has them.
EVERYBODY = frozenset((Scope.HEALTH, Scope.PUBLIC))
#: The scopes whose routes change something that outlives the request.
CHANGING = frozenset((Scope.MANAGE, Scope.ADMIN))
#: The scopes denied to web pages by default: CHANGING, and INFER, since running models costs compute.
GUARDED = CHANGING | {Scope.INFER}
