"""Compares `backline tune` with exhaustive search: `python benchmarks/tuning.py`.

For each of three networks, two methods look for the maximum throughput: the search of `backline tune`, and a
measurement of every combination of settings at every useful concurrency. Each measurement of the exhaustive
search is as short as those by which `backline tune` picks its finalists. Then the winner of each method is
measured several times, in turn, so that noise in one measurement does not decide. The script prints a table
in Markdown.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import click
from harness.machine import machine
from harness.model import write_model, write_slow_model

from backline.lifecycle.options import LifecycleOptions
from backline.plugins.tools.tune.search import Goal, LoadMeasurement, Search, exhaustive
from backline.plugins.tools.tune.settings import space
from backline.plugins.tools.tune.trials import Trials
from backline.system.cores import usable_cores

#: The networks, with the number and the width of their layers; None means x + 1 on 16 numbers.
NETWORKS: dict[str, tuple[int, int] | None] = {"add1": None, "narrow": (4, 128), "wide": (8, 512)}
LEVELS = (8, 32, 128)
ROUNDS = 5


@dataclass(frozen=True)
class Comparison:
    """The time that each search took in seconds, and the throughput of the settings that it found."""

    network: str
    combinations: int
    tune_seconds: float
    exhaustive_seconds: float
    tuned: LoadMeasurement
    best: LoadMeasurement
    #: The throughput with tune's settings, divided by that with the settings of exhaustive search: the median
    #: over the rounds.
    ratio: float
    #: The throughput with tune's settings, divided by that with the server's own choice: the median over the
    #: rounds.
    gain: float

    def row(self) -> str:
        cells = (
            self.network,
            self.combinations,
            f"{self.exhaustive_seconds:.0f}",
            f"{self.tune_seconds:.1f}",
            f"{self.tune_seconds / self.exhaustive_seconds:.1%}",
            self.best.settings,
            self.tuned.settings,
            f"{self.ratio:.3f}",
            f"{self.gain:.2f}",
        )
        return f"| {' | '.join(map(str, cells))} |"


async def compare(network: str, folder: Path, state: Path, seconds: float) -> Comparison:
    cores = usable_cores()
    options = LifecycleOptions(isolate="never", state_folder=state)
    async with Trials(str(folder), network, options) as trials:
        await trials.inspect()
        _, tunable = await trials.prepare((), (), None)
        began = perf_counter()
        outcome = await Search(tunable, cores, Goal(), trials.measure).run()
        tune_seconds = perf_counter() - began
        began = perf_counter()
        every = await exhaustive(tunable, cores, Goal(), trials.measure, levels=LEVELS, seconds=seconds)
        exhaustive_seconds = perf_counter() - began
        tuned, best = outcome.best, every[0]
        ratios, gains = [], []
        for _ in range(ROUNDS):
            mine = await trials.measure(tuned.settings, tuned.concurrency, 0.5)
            theirs = await trials.measure(best.settings, best.concurrency, 0.5)
            base = await trials.measure(outcome.base.settings, outcome.base.concurrency, 0.5)
            ratios.append(mine.throughput / theirs.throughput)
            gains.append(mine.throughput / base.throughput)
    return Comparison(
        network,
        len(space(tunable, cores)),
        tune_seconds,
        exhaustive_seconds,
        tuned,
        best,
        median(ratios),
        median(gains),
    )


@click.command()
@click.option("--only", type=click.Choice(tuple(NETWORKS)), multiple=True, help="Some networks only.")
@click.option("--seconds", default=0.2, show_default=True, help="Of each measurement of exhaustive search.")
def main(only: tuple[str, ...], seconds: float) -> None:
    """Compares `backline tune` with exhaustive search."""
    print(", ".join(machine().values()))
    print(
        "\n| network | combinations | exhaustive, s | tune, s | share of time | best of exhaustive search |"
        " best of tune | throughput ratio | compared with the server's choice |"
    )
    print(f"|{' --- |' * 9}")
    for network, layers in NETWORKS.items():
        if only and network not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="backline-tuning-") as place:
            file = Path(place) / network / "1" / "model.onnx"
            file.parent.mkdir(parents=True)
            if layers is None:
                write_model(file, "Add", [16], 1.0)
            else:
                write_slow_model(file, *layers, batch="N")
            print(
                asyncio.run(compare(network, Path(place) / network, Path(place) / "state", seconds)).row(),
                flush=True,
            )


if __name__ == "__main__":
    main()
