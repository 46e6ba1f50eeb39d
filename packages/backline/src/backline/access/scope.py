"""The scopes: permissions that callers need. Each route and gRPC method is registered with one scope."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """A permission. A route with several effects needs the scope for the most powerful one, so a route that
    changes anything is not registered with READ.
    """

    #: Ask whether the server is live and ready. Every caller has this scope, since orchestrators probe
    #: without keys.
    HEALTH = "health"
    #: Fetch content that has no data of models or clients, such as the console's files.
    PUBLIC = "public"
    #: Run models.
    INFER = "infer"
    #: See metadata, configurations, statistics, settings, and the logs of changes.
    READ = "read"
    METRICS = "metrics"
    #: Change which models and versions are served, and register shared memory.
    MANAGE = "manage"
    #: Change the settings of the log, traces and recordings, and read the log and recorded requests.
    ADMIN = "admin"


#: The scopes that need no credentials: every caller has them.
EVERYBODY = frozenset((Scope.HEALTH, Scope.PUBLIC))
#: The scopes of routes that change something that outlives the request, or read the log or recorded requests.
#: Requests to these routes are recorded in the audit log.
CHANGING = frozenset((Scope.MANAGE, Scope.ADMIN))
#: The scopes denied to web pages of other origins by default: CHANGING, and INFER, since running models costs
#: compute.
GUARDED = CHANGING | {Scope.INFER}
