"""Measures cases on peers that take turns: A B C, B C A, C A B, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.case import Case, Measurement, median_measurement, ratio
from harness.environment import CannotRun
from harness.peers.peer import Peer


@dataclass
class Row:
    """A case with the runs of each peer, one per round, or the reason why a peer has none."""

    case: Case
    runs: dict[str, list[Measurement]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def median(self, peer: str) -> Measurement | None:
        return median_measurement(self.runs[peer]) if self.runs.get(peer) else None

    def ratio(self, base: str, peer: str) -> float | None:
        """Returns the ratio of the requests per second of `base` to those of `peer`, or None if either has no
        runs.
        """
        return (
            ratio(self.runs[base], self.runs[peer]) if self.runs.get(base) and self.runs.get(peer) else None
        )


def turns(peers: Sequence[str], round_number: int) -> list[str]:
    """Returns the peers in the order of a round, rotated so that no peer always runs after the same other
    one.
    """
    start = round_number % len(peers) if peers else 0
    return [*peers[start:], *peers[:start]]


def measure(
    cases: Sequence[Case],
    peers: Mapping[str, Peer],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures every case `rounds` times on every peer that supports it, while the other peers are paused."""
    rows = []
    for peer in peers.values():
        peer.pause()
    for number, case in enumerate(cases, start=1):
        row = Row(case)
        able = []
        for name, peer in peers.items():
            if not peer.measures(case):
                continue
            try:
                peer.resume()
                peer.check(case)
                if seconds > 1:  # a warm-up would double the time of a quick run
                    peer.measure(case, 1.0)
                    peer.settle(case)
                able.append(name)
            except CannotRun as error:
                row.reasons[name] = str(error)
            finally:
                peer.pause()
        for round_number in range(rounds):
            for name in turns(able, round_number):
                if name in row.reasons:
                    continue
                try:
                    peers[name].resume()
                    row.runs.setdefault(name, []).append(peers[name].measure(case, case.seconds(seconds)))
                    peers[name].settle(case)
                except CannotRun as error:
                    row.reasons[name] = str(error)
                finally:
                    peers[name].pause()
        rows.append(row)
        figures = [
            f"{name} {median.requests_per_second:,.0f}/s"
            for name in peers
            if (median := row.median(name)) is not None
        ]
        figures += [f"{name}: {reason}" for name, reason in row.reasons.items()]
        say(
            f"[{number}/{len(cases)}] {case.model.name}, {case.way} by {case.generator},"
            f" {case.concurrency} clients: {'; '.join(figures)}"
        )
    return rows
