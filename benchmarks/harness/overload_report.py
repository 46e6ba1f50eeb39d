"""Writes a page about loads above a server's capacity, with tables and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from harness.open_loop import Fate

ANSWERED = ("200", "OK")
#: The outcomes that count as refusals. They include errors of passed deadlines, which cost the client no more
#: than a refusal.
REFUSED = ("503", "504", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
NAMES = {"plain": "Backline", "objective": "Backline, objective", "triton": "Triton, tuned"}


@dataclass(frozen=True)
class Turn:
    """The outcomes of one server's requests at one load for `seconds`. `lost` counts requests without an
    outcome.
    """

    fates: Sequence[Fate]
    lost: int
    seconds: float

    def rate(self, what: Sequence[str], within: float = float("inf")) -> float:
        """Returns the requests per second that had one of these outcomes within `within` seconds of being
        due.
        """
        return (
            sum(fate.what in what and fate.ended - fate.due <= within for fate in self.fates) / self.seconds
        )


@dataclass(frozen=True)
class Outcome:
    """The results of all turns of one server at one load.

    Rates (offered, answered, refused, answered within the objective) are medians over the turns, in requests
    per second; goodput also has its minimum and maximum. Latencies in milliseconds are over all requests of
    all turns. `refusal_p99` is the time until a refusal, and `lateness_p99` the delay with which the
    generator sent requests.
    """

    offered: float
    answered: float
    goodput: float
    goodputs: tuple[float, float]
    p50: float
    p99: float
    refused: float
    refusal_p99: float
    lateness_p99: float
    others: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [
            f"{self.goodput:.1f}/s in time of {self.answered:.1f} answered and {self.offered:.1f} offered",
            f"p50 {self.p50:.0f}, p99 {self.p99:.0f} ms",
            f"refusals p99 {self.refusal_p99:.1f} ms",
            f"generator late by {self.lateness_p99:.1f} ms at p99",
            *([str(self.others)] if self.others else []),
        ]
        return ", ".join(words)


def outcome_of(turns: Sequence[Turn], objective: float) -> Outcome:
    """Returns the outcome of these turns; `objective` is in seconds."""
    fates = [fate for turn in turns for fate in turn.fates]
    answered = [fate.ended - fate.due for fate in fates if fate.what in ANSWERED]
    refused = [fate.ended - fate.due for fate in fates if fate.what in REFUSED]
    others = Counter(fate.what for fate in fates if fate.what not in ANSWERED + REFUSED)
    lost = sum(turn.lost for turn in turns)
    if lost:
        others["no answer"] = lost
    goodputs = [turn.rate(ANSWERED, objective) for turn in turns]
    return Outcome(
        median([len(turn.fates) / turn.seconds for turn in turns]),
        median([turn.rate(ANSWERED) for turn in turns]),
        median(goodputs),
        (min(goodputs), max(goodputs)),
        _quantile(answered, 0.5),
        _quantile(answered, 0.99),
        median([turn.rate(REFUSED) for turn in turns]),
        _quantile(refused, 0.99),
        _quantile([fate.sent - fate.due for fate in fates], 0.99),
        dict(others),
    )


def _quantile(seconds: Sequence[float], share: float) -> float:
    return float(np.quantile(seconds, share) * 1000) if len(seconds) else float("nan")


@dataclass
class Report:
    """Outcomes by protocol, load and mode. The objective and the seconds per turn are in seconds."""

    objective: float
    seconds: float
    rounds: int
    outcomes: Mapping[tuple[str, float, str], Outcome]

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(protocol for protocol, _, _ in self.outcomes))

    @property
    def modes(self) -> list[str]:
        """The modes in order of presentation."""
        found = {mode for _, _, mode in self.outcomes}
        return [mode for mode in NAMES if mode in found]

    def loads(self, protocol: str) -> list[float]:
        return sorted({times for other, times, _ in self.outcomes if other == protocol})

    def best(self, protocol: str) -> float:
        """Returns the best goodput of any server at any load."""
        return max(outcome.goodput for (other, _, _), outcome in self.outcomes.items() if other == protocol)

    def claims(self, mode: str, loads: Sequence[float]) -> list[tuple[bool, str]]:
        """Checks the claims about a mode: its goodput is near the best, its answers meet the objective."""
        made = []
        for protocol in self.protocols:
            best = self.best(protocol)
            for times, least in ((1.1, 0.95), (4.0, 0.9)):
                if times in loads:
                    share = self.outcomes[protocol, times, mode].goodput / best
                    made.append(
                        (
                            share >= least,
                            (
                                f"{protocol}, {times:g} times: {share:.1%} of the best goodput"
                                f" (at least {least:.0%})"
                            ),
                        )
                    )
            for times in loads:
                p99 = self.outcomes[protocol, times, mode].p99
                objective = self.objective * 1000
                made.append(
                    (
                        p99 <= objective,
                        (
                            f"{protocol}, {times:g} times: p99 of the responses {p99:.0f} ms"
                            f" (at most {objective:g} ms)"
                        ),
                    )
                )
        return made

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"protocol": p, "times": times, "mode": mode, **asdict(outcome)}
            for (p, times, mode), outcome in self.outcomes.items()
        ]

    def write(
        self,
        page: Path,
        *,
        about: Mapping[str, str],
        versions: Mapping[str, Mapping[str, str]],
        tried: Sequence[str],
        objective_mode: str,
    ) -> None:
        """Writes the page, and the picture next to it."""
        page.parent.mkdir(parents=True, exist_ok=True)
        picture = page.with_suffix(".png")
        self.draw(picture)
        lines = [
            "# Under overload",
            "",
            "Written by `python benchmarks/objective.py`; see",
            "[benchmarks/README.md](../../benchmarks/README.md#objectivepy).",
            "",
            "Requests arrive at random (Poisson) at a multiple of the capacity, whatever the server does;",
            "latency counts from the time at which a request was due. Goodput is the rate of requests",
            f"served within {self.objective * 1000:g} ms. The model is a speaker encoder of three LSTM",
            "layers, in batches of up to 8 on one instance; load generator and servers share the machine.",
            "",
            f"The servers take turns of {self.seconds:g} s in {self.rounds} rounds, in an order that",
            "changes from round to round, because the speed of the machine changes from minute to minute.",
            "Rates are medians of the rounds (goodput also with minimum and maximum); latencies are over all",
            "requests of all rounds.",
            '"Of the best" means: as a share of the highest goodput of any server at any load. Responses',
            "after the end of a turn count too, so a server that lets requests queue can serve more than its",
            'capacity. "Refusals p99" says how long refusals took, and "generator late p99" how late the',
            "generator sent requests.",
            "",
            f"![Goodput and p99 over the load]({picture.name})",
            "",
            *(f"- {name}: {value}" for name, value in about.items()),
            *(
                f"- {NAMES[mode]}: {', '.join(f'{name} {version}' for name, version in found.items())}"
                for mode, found in versions.items()
            ),
            "",
        ]
        for protocol in self.protocols:
            lines += self._table(protocol)
        lines += ["Claims about Backline with an objective, and whether they held:", ""]
        claims = self.claims(objective_mode, self.loads(self.protocols[0]))
        lines += [f"- {'yes' if holds else '**no**'}: {words}" for holds, words in claims]
        if tried:
            lines += [
                "",
                "Triton ran with the best of these queue policies, by the sum of its goodputs over HTTP:",
                "",
            ]
            lines += [f"- {words}" for words in tried]
        page.write_text("\n".join([*lines, ""]))

    def _table(self, protocol: str) -> list[str]:
        best = self.best(protocol)
        head = [
            "load",
            "server",
            "goodput",
            "of the best",
            "served",
            "p50",
            "p99",
            "refusals p99",
            "generator late p99",
        ]
        lines = [
            f"## {'HTTP' if protocol == 'http' else 'gRPC'}",
            "",
            "| " + " | ".join(head) + " |",
            "|" + " --- |" * len(head),
        ]
        for times in self.loads(protocol):
            for mode in self.modes:
                one = self.outcomes[protocol, times, mode]
                least, most = one.goodputs
                goodput = f"{one.goodput:.0f}/s ({least:.0f} to {most:.0f})"
                cells = [
                    f"{times:g}x, {one.offered:.0f}/s",
                    NAMES[mode],
                    goodput,
                    f"{one.goodput / best:.1%}",
                ]
                cells += [
                    f"{one.answered:.0f}/s",
                    _ms(one.p50),
                    _ms(one.p99),
                    _ms(one.refusal_p99),
                    _ms(one.lateness_p99),
                ]
                lines.append("| " + " | ".join(cells) + " |")
        others = {
            (times, mode): one.others
            for (p, times, mode), one in self.outcomes.items()
            if p == protocol and one.others
        }
        lines += [
            "",
            *(f"At {times:g} times, {NAMES[mode]}: {found}." for (times, mode), found in others.items()),
            *([""] if others else []),
        ]
        return lines

    def draw(self, path: Path) -> None:
        """Writes a PNG of the goodput and of the p99 of answers by load, for each protocol."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            2, len(self.protocols), figsize=(4.6 * len(self.protocols), 6.2), squeeze=False, sharex=True
        )
        for column, protocol in enumerate(self.protocols):
            loads = self.loads(protocol)
            for mode in self.modes:
                outcomes = [self.outcomes[protocol, times, mode] for times in loads]
                axes[0][column].plot(loads, [one.goodput for one in outcomes], marker="o", label=NAMES[mode])
                axes[1][column].plot(loads, [one.p99 for one in outcomes], marker="o", label=NAMES[mode])
            axes[0][column].set_title("HTTP" if protocol == "http" else "gRPC")
            axes[0][column].set_ylim(bottom=0)
            axes[1][column].axhline(self.objective * 1000, color="black", linewidth=1, linestyle="--")
            axes[1][column].set_yscale("log")
            axes[1][column].set_xlabel("load, times the capacity")
            axes[1][column].set_xticks(loads, [f"{times:g}" for times in loads])
        axes[0][0].set_ylabel("answered within the objective, 1/s")
        axes[1][0].set_ylabel("p99 of the responses, ms")
        axes[0][-1].legend(fontsize=8)
        for axis in axes.flat:
            axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _ms(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
