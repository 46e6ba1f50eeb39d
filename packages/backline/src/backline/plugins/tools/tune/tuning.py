"""Searches for the best settings of a model: what `backline tune` does, for programs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backline.cli.command import run
from backline.cli.inputs import Inputs
from backline.cli.model_folder import open_model
from backline.cli.run import find_model
from backline.lifecycle.options import LifecycleOptions
from backline.plugins.tools.tune.report import comment, document, verdict
from backline.plugins.tools.tune.search import Goal, LoadMeasurement, Outcome, Search
from backline.plugins.tools.tune.settings import Tunable, configured
from backline.plugins.tools.tune.trials import Trials
from backline.repository.configuration import text, toml
from backline.repository.configuration.document import Document
from backline.repository.configuration.files import CONFIG_PBTXT, MODEL_TOML
from backline.system.cores import usable_cores
from backline_client.values.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class TunedModel:
    """The result of `tune`. `inputs` describes the requests that were sent."""

    name: str
    path: Path
    inputs: str
    goal: Goal
    outcome: Outcome
    #: The configuration with the best settings, an inference.ModelConfig.
    config: Any

    @property
    def now(self) -> LoadMeasurement:
        """The measurement of the current settings."""
        return self.outcome.base

    @property
    def best(self) -> LoadMeasurement:
        """The measurement of the best settings."""
        return self.outcome.best

    @property
    def reached(self) -> bool:
        """Whether the best settings reach the goal."""
        return self.goal.of(self.best) >= 0

    @property
    def changed(self) -> bool:
        """Whether the best settings differ from the current ones."""
        return self.best.settings != self.now.settings

    @property
    def model_toml(self) -> str:
        """The text of a model.toml with the best settings."""
        return self._comment + toml.render(Document("", self.config))

    @property
    def _comment(self) -> str:
        return comment(self.outcome, self.goal, self.inputs)

    def __str__(self) -> str:
        return verdict(self.outcome, self.goal)

    def document(self) -> Mapping[str, Any]:
        """Returns the result as a JSON object, with all measurements."""
        return document(self.outcome, self.goal, self.name, self.inputs)

    def write(self) -> list[str]:
        """Writes the best settings to the model's configuration, keeps the old file next to it, and returns
        a sentence on each change. Does nothing unless the settings changed and reach the goal.

        Raises InvalidArgument if the model is a file, which has no place for a configuration.
        """
        check_folder(self.path, self.name)
        if not self.changed or not self.reached:
            return []
        return list(write_configuration(self.path, self.config, self._comment))


def tune(
    model: str | Path,
    *,
    p99: float | None = None,
    inputs: Inputs = (),
    input_shapes: Sequence[str] = (),
    recorded: Path | None = None,
    pace: float = 1.0,
    trust_pickle: bool = False,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> TunedModel:
    """Searches for the settings with which a model, given as its folder or file, has the highest throughput
    on this machine; if `p99` is given, with a 99th percentile of latency of at most `p99` seconds.

    The model runs in this process. `inputs` are arrays by input name, or items as for `--input`; other
    required inputs get random values, in the shapes of `input_shapes` ("NAME:DIMS"). `recorded` is a file of
    recorded requests (.tfrecord) to send instead. `pace` multiplies the duration of every measurement.
    `progress` is called with a text and the fraction that is done. Files that can execute code when loaded
    are refused unless `trust_pickle`.

    Raises InvalidArgument if the model cannot be tuned, and the error of the load if it cannot be loaded.

    >>> tuned = backline.tune("models/scorer", p99=0.020)
    >>> print(tuned)
    >>> tuned.write()
    """
    repository, name = find_model(str(model), whole=False)
    goal = Goal(p99)
    with tempfile.TemporaryDirectory(prefix="backline-") as state:
        options = LifecycleOptions(isolate="never", trust_pickle=trust_pickle, state_folder=Path(state))
        trials = Trials(repository, name, options)
        described, tunable, outcome = run(_tune(trials, goal, pace, progress, input_shapes, inputs, recorded))
    config = configured(trials.declared, outcome.best.settings, tunable)
    return TunedModel(name, Path(model).absolute(), described, goal, outcome, config)


async def _tune(
    trials: Trials,
    goal: Goal,
    pace: float,
    on_progress: Callable[[str, float], None],
    shapes: Sequence[str],
    inputs: Inputs,
    recorded: Path | None,
) -> tuple[str, Tunable, Outcome]:
    async with trials:
        await trials.inspect()
        described, tunable = await trials.prepare(shapes, inputs, recorded)
        search = Search(tunable, usable_cores(), goal, trials.measure, pace=pace, progress=on_progress)
        return described, tunable, await search.run()


def check_folder(path: Path, name: str) -> None:
    """Raises InvalidArgument if a model is a file, which has no place for a configuration."""
    if not path.is_dir():
        raise InvalidArgument(
            f"'{path}' is a file, which has no place for a configuration. Move it to"
            f" {name or 'NAME'}/1/{path.name}, and tune the folder {name or 'NAME'}."
        )


def write_configuration(folder: Path, config: Any, header: str) -> Iterator[str]:
    """Writes a model's configuration into its folder, in the format of the existing file.

    Yields a description of each change. The old file is renamed, so that servers do not read it any more. If
    the new file is not valid, restores the old one and raises InvalidArgument.
    """
    pbtxt, native = folder / CONFIG_PBTXT, folder / MODEL_TOML
    file = pbtxt if pbtxt.exists() else native
    rendered = text.render(Document("", config)) if file is pbtxt else toml.render(Document("", config))
    content = header + rendered
    if file.exists():
        kept = next(
            path for number in range(1, 10_000) if not (path := Path(f"{file}.before-tune-{number}")).exists()
        )
        file.rename(kept)
        yield f"kept the old configuration as '{kept}'"
    else:
        kept = None
    file.write_text(content)
    problem = open_problem(folder)
    if problem:
        file.unlink()
        if kept is not None:
            kept.rename(file)
        raise InvalidArgument(f"the configuration was not written, because it is not valid: {problem}")
    yield f"wrote '{file}'"


def open_problem(folder: Path) -> str:
    """Returns why the configuration of the model in a folder is not valid; "" if it is valid."""
    try:
        open_model(folder)
    except InvalidArgument as error:
        return error.message
    return ""
