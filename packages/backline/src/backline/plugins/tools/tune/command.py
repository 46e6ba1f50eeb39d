"""`backline tune`: searches for the best settings of a model on this machine."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from backline.cli.inputs import input_option, shape_option
from backline.cli.numbers import DurationType, Number
from backline.cli.options import result_option, state_folder_option, trust_pickle_option
from backline.cli.result_files import require_matplotlib
from backline.cli.run import find_model
from backline.lifecycle.records import default_state_folder
from backline.observe.recording import recorded_file
from backline.plugins.tools.tune.report import print_outcome, write_plot
from backline.plugins.tools.tune.tuning import check_folder, tune

RECORDED = "recorded"
_EPILOG = """\b
Examples:
  backline tune models/add1
  backline tune models/basic_pitch --p99 20ms --write
  backline tune models/scorer --data requests.npz --plot pareto.html
  backline tune models/tagger --data recorded --json result.json

The model runs in this process, with all cores to itself: tune on a machine like the one that will serve it,
with nothing else running. Callers wait for each response before they send the next request."""


@click.command(epilog=_EPILOG)
@click.argument("model", type=click.Path(exists=True))
@click.option(
    "--p99",
    type=DurationType(),
    metavar="TIME",
    help="Maximise the throughput with a 99th percentile of latency of at most TIME, such as 20ms.",
)
@click.option(
    "--throughput", is_flag=True, help="Maximise the throughput, whatever the latency. The default."
)
@click.option(
    "--data",
    metavar="FILE|recorded",
    help="The inputs, as for `backline bench`; or 'recorded' for the requests that `backline models record`"
    " stored; or a file of such requests (.tfrecord).",
)
@input_option
@shape_option
@state_folder_option
@click.option(
    "--write",
    is_flag=True,
    help="Write the best settings to the model's configuration, and keep the old file next to it.",
)
@result_option("--plot", "plot", "Write a plot of throughput by latency, as .png, .svg or .html.")
@result_option("--json", "json_path", "Write all results as JSON.")
@click.option(
    "--pace",
    type=Number(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies the duration of every measurement: larger values take longer and are more exact.",
)
@trust_pickle_option
def command(
    model: str,
    p99: float | None,
    throughput: bool,
    data: str | None,
    inputs: tuple[str, ...],
    input_shape: tuple[str, ...],
    state_folder: Path | None,
    write: bool,
    plot: Path | None,
    json_path: Path | None,
    pace: float,
    trust_pickle: bool,
) -> None:
    """Search for the settings with which MODEL, a model's folder or file, is fastest on this machine.

    Varies the lane, the number of instances, the batch size, the queue delay and, if the runtime has these
    options, the threads of each run, graph optimisation and the memory arena. The results of most
    combinations are only predicted, from the run times of a few.
    """
    if p99 is not None and throughput:
        raise click.UsageError("--p99 and --throughput contradict each other; give one of them.")
    if plot is not None:
        require_matplotlib()
    repository, name = find_model(model, whole=False)
    if write:
        check_folder(Path(model), name)
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    recorded = _recorded(data, state_folder, repository, name)
    with progress() as on_progress:
        tuned = tune(
            model,
            p99=p99,
            inputs=(*inputs, *(() if data is None or recorded is not None else (f"@{data}",))),
            input_shapes=input_shape,
            recorded=recorded,
            pace=pace,
            trust_pickle=trust_pickle,
            progress=on_progress,
        )
    if plot is not None:
        write_plot(tuned.outcome, tuned.goal, f"{tuned.name}: {tuned.inputs}", plot)
    if json_path is not None:
        json_path.write_text(json.dumps(tuned.document(), indent=2) + "\n")
    print_outcome(tuned.outcome, tuned.goal)
    if not tuned.reached:
        raise click.exceptions.Exit(1)
    if write:
        for line in tuned.write():
            print(line)
    elif tuned.changed:
        print(f"\n--write stores this in the model's folder:\n\n{tuned.model_toml}", end="")


def _recorded(data: str | None, state: Path | None, repository: str, name: str) -> Path | None:
    """Returns the file of recorded requests to which `data`, the value of --data, refers; None if it refers
    to something else.
    """
    if data == RECORDED:
        where = Path(repository)
        # The repository of a server is usually the folder that contains the model's folder.
        folders = [state] if state is not None else [*map(_state_folder, (where.parent, where))]
        files = [recorded_file(folder, name) for folder in folders]
        return next((file for file in files if file.exists()), files[0])
    return Path(data) if data is not None and data.endswith(".tfrecord") else None


def _state_folder(repository: Path) -> Path:
    return default_state_folder([str(repository)])


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """Shows a progress bar on stderr if it is a terminal. Yields the function that updates the bar."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=30), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading the model", total=1.0)
        yield lambda what, share: bar.update(task, completed=share, description=what)
