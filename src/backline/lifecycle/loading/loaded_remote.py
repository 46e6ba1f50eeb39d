"""Models that other servers serve: their descriptions, and the lane to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from backline.backends.backend import RemoteModel, Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import InvalidArgument, Unavailable
from backline.engine.statistics import ResponseStatistics
from backline.engine.values.device import Places
from backline.engine.values.signature import Signature
from backline.fleet.description import Description, describe, open_remote
from backline.fleet.lane import RemoteLane
from backline.lifecycle.loading.instances import InstanceMaker
from backline.lifecycle.loading.loaded import LoadedVersion
from backline.lifecycle.view.arrays import Arrange, ReshapeTensors
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.view import View
from backline.repository.configuration.effects import ignored_settings
from backline.workers.instance import Instance

#: Seconds that a request without a deadline may take, if the configuration sets no execution_timeout_seconds.
_TIME_LIMIT = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRemote(LoadedVersion):
    """A model on other servers. This process has only the connections."""

    remote: RemoteModel
    #: The lanes created so far, each with its event loop.
    lanes: list[tuple[RemoteLane, asyncio.AbstractEventLoop]] = field(default_factory=list)

    def placed_again(self, config: ModelConfig) -> LoadedRemote:
        return self

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        model, config = maker.model, self.view.config
        if self.decoupled and model.statistics.responses is None:
            model.statistics.responses = ResponseStatistics()
        lane = RemoteLane(
            model.name,
            model.version,
            self.remote,
            open_remote(self.remote, idempotent=config.idempotent is not False, poll=maker.poll),
            tuple(spec.name for spec in self.signature.outputs),
            time_limit=config.execution_timeout_seconds or _TIME_LIMIT,
            responses=model.statistics.responses if self.decoupled else None,
        )
        self.lanes.append((lane, asyncio.get_running_loop()))
        return list(lane.instances)

    def lone_runs(self) -> Iterable[Run]:
        """Returns nothing, because the other servers warm up their models."""
        return ()

    def close(self) -> None:
        for lane, loop in self.lanes:
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(lane.close(), loop)


def loaded_remote(config: ModelConfig, view: View, remote: RemoteModel, *, placed: Places) -> LoadedRemote:
    """Asks the servers to describe the model, or uses a configuration that names inputs and outputs.

    Raises Unavailable if neither is possible, InvalidArgument for settings that a remote model cannot have.
    """
    _refuse_stages(config, view)
    warnings = remote.warnings + ignored_settings(config, "remote")
    try:
        found = describe(remote)
    except Unavailable as error:
        if not (config.inputs and config.outputs and config.max_batch_size is not None):
            raise Unavailable(
                f"model '{config.name}' cannot be described by {remote.urls}: {error.message}. It would load"
                " anyway if its configuration named max_batch_size, input and output"
            ) from None
        warnings += (f"model '{config.name}': no server answers yet: {error.message}",)
        found = _configured(config)
    limit = config.max_batch_size if config.max_batch_size is not None else found.max_batch_size or 0
    return LoadedRemote(
        view=view,
        remote=remote,
        backend="remote",
        platform="remote",
        signature=view.fit(found.signature),
        max_batch_size=limit,
        batch_limit=1,
        lane="remote",
        placed=placed,
        places=placed.spread(remote.max_in_flight)[: remote.max_in_flight],
        reason=f"{remote.urls} serve it, with at most {remote.max_in_flight} requests in flight",
        decoupled=config.decoupled or found.decoupled,
        warnings=warnings,
    )


def _refuse_stages(config: ModelConfig, view: View) -> None:
    """Raises InvalidArgument for settings that would change requests before they are forwarded."""
    view.stage(Arrange).refuse("remote models")
    refused = {
        "sequence_batching": config.sequence is not None,
        "reshape": view.stage(ReshapeTensors).changes_runs,
        "ragged or padded inputs": view.stage(JoinRequests).joiner is not None,
    }
    for setting, given in refused.items():
        if given:
            raise InvalidArgument(
                f"model '{config.name}': {config.source} has {setting}, which a remote model cannot have: set"
                " it on the servers that run the model"
            )


def _configured(config: ModelConfig) -> Description:
    first = (-1,) if config.max_batch_size else ()
    inputs, outputs = (
        tuple(replace(spec, shape=(*first, *spec.shape)) for spec in specs)
        for specs in (config.inputs, config.outputs)
    )
    return Description(Signature(inputs, outputs), config.max_batch_size, config.decoupled)
