"""The parameters of the policy that distributes requests among servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """Parameters that say when to avoid a server, and when to send a request again. Times are in seconds."""

    #: A server that takes this many times as long as the fastest one gets fewer requests.
    slow_factor: float = 3.0
    #: After this many seconds without a response, a slow server is tried again.
    forget_after: float = 10.0
    #: This many failures in a row eject a server.
    failures: int = 3
    #: How long the first ejection lasts; each further one lasts twice as long, up to the maximum.
    ejection: float = 1.0
    longest_ejection: float = 30.0
    #: How long to avoid a busy server that does not say how long, and the maximum for one that does.
    busy: float = 0.1
    longest_busy: float = 5.0
    #: A server whose oldest request has waited this long is asked whether it is alive.
    stall: float = 0.5
    #: The share of requests that may be sent again, because they were refused or the connection broke, and
    #: the maximum number of such retries at once.
    retry_share: float = 0.2
    retry_burst: float = 100.0
    #: The share of requests that may be sent to a second server because the first is late, and the maximum
    #: number at once.
    hedge_share: float = 0.05
    hedge_burst: float = 10.0
    #: A request is late if this share of recent requests was faster, and it has taken at least this long.
    hedge_quantile: float = 0.95
    hedge_least: float = 0.002


DEFAULT_POLICY: Final = BalancePolicy()
