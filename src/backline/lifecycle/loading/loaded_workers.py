"""Models in worker processes, which declare what they accept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backline.backends.backend import Run
from backline.engine.errors import BacklineError
from backline.engine.model_config import ModelConfig
from backline.lifecycle.loading.loaded import LoadedVersion, missing_gpu, why_there
from backline.lifecycle.view.join import JoinInWorker
from backline.lifecycle.view.view import STAGES_OF_WORKERS, View
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers

if TYPE_CHECKING:
    from backline.lifecycle.loading.instances import InstanceMaker


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWorkers(LoadedVersion):
    """The number of workers is fixed until the next load."""

    model: ModelInWorkers

    resizable: ClassVar[bool] = False

    def placed_again(self, config: ModelConfig) -> LoadedWorkers:
        return replace(self, batch_limit=_joined(config, self.model))

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        return maker.places_in_workers(self.model)

    def lone_runs(self) -> Iterable[Run]:
        return (self.view.alone(self.model).run,)

    def resident_bytes(self, measured: int) -> int:
        return self.model.resident_bytes

    def close(self) -> None:
        self.model.close()


def loaded_workers(
    config: ModelConfig, path: Path, model: ModelInWorkers, *, backend: str, warnings: tuple[str, ...]
) -> LoadedWorkers:
    """Decides how to run a model in workers. If it does not fit, closes it and raises BacklineError."""
    said = model.loaded
    view = View(config, path, STAGES_OF_WORKERS)
    join = view.stage(JoinInWorker)
    try:
        join.check(joins=said.joins)
        signature = view.fit(model.signature)
    except BacklineError:
        model.close()
        raise
    return LoadedWorkers(
        view=view,
        model=model,
        backend=backend,
        platform=said.platform,
        signature=signature,
        max_batch_size=said.max_batch_size,
        batch_limit=_joined(config, model),
        lane="debug" if model.debugged else "process",
        placed=model.placed,
        places=model.places,
        reason=model.where + why_there(config, model.placed),
        decoupled=said.decoupled,
        warnings=model.warnings + warnings + missing_gpu(config, model.placed),
        joining=join.joining,
        max_queue_delay_us=said.max_queue_delay_us or 0,
    )


def _joined(config: ModelConfig, model: ModelInWorkers) -> int:
    """How many items the scheduler joins: a model may rely on single requests unless it asks for batches."""
    said = model.loaded
    alone = said.joined_if_asked and not config.dynamic_batching and config.sequence is None
    return min(1, said.max_batch_size) if alone else said.max_batch_size
