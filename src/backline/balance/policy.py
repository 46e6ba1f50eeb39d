"""The numbers of the policy by which requests are spread over servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """When a server is avoided, and when a request is sent once more. Times are in seconds."""

    #: A server that takes this many times as long as the fastest one gets fewer requests.
    slow_factor: float = 3.0
    #: After this many seconds without a response, a slow server is tried again.
    forget_after: float = 10.0
    #: This many failures in a row eject a server.
    failures: int = 3
    #: How long the first ejection lasts; each further one takes twice as long, up to the longest.
    ejection: float = 1.0
    longest_ejection: float = 30.0
    #: How long a server that was too busy is avoided, unless it says how long.
    busy: float = 0.1
    longest_busy: float = 5.0
    #: A server whose oldest request has waited this long is asked whether it is alive.
    stall: float = 0.5
    #: The share of requests that may be sent again, because they were refused or the connection broke, and
    #: how many may be sent again at once.
    retry_share: float = 0.2
    retry_burst: float = 100.0
    #: The share of requests that may be sent to a second server because the first is late, and how many at
    #: once.
    hedge_share: float = 0.05
    hedge_burst: float = 10.0
    #: A request is late when this share of the recent ones was faster, and it has taken at least this long.
    hedge_quantile: float = 0.95
    hedge_least: float = 0.002


DEFAULT_POLICY: Final = BalancePolicy()
