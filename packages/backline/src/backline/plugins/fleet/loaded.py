"""Models that other servers serve: their descriptions, and the lane to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field, replace

from msgspec import structs

from backline.backends.backend import Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Places
from backline.engine.request_check import RequestCheck
from backline.engine.route import new_id
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.lifecycle.loading.instances import InstanceMaker
from backline.lifecycle.loading.loaded import LoadedVersion
from backline.lifecycle.view.arrays import Arrange, ReshapeTensors
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.view import View
from backline.plugins.fleet.backend import RemoteModel
from backline.plugins.fleet.description import Description, DescriptionWatch, describe, open_remote
from backline.plugins.fleet.lane import RemoteLane
from backline.plugins.fleet.remote_check import RemoteCheck
from backline.plugins.fleet.sequence_holders import HolderCheck, RemoteSequences
from backline.repository.configuration.effects import ignored_settings
from backline.workers.instance import Instance
from backline_client.values.errors import InvalidArgument, Unavailable
from backline_client.values.signature import Signature

#: The maximum duration of a call to another server, in seconds, if the configuration sets no
#: execution_timeout_seconds. For a decoupled model, this limits the wait for each response.
_TIME_LIMIT = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRemote(LoadedVersion):
    """A model on other servers. This process has only the connections to these servers."""

    remote: RemoteModel
    #: Whether the servers run several requests together; see Description.
    joins: bool
    #: The seconds after which the servers end an idle sequence; 0 if unknown, None without sequences.
    idle_seconds: float | None
    #: Notices when the servers change the model.
    watch: DescriptionWatch
    #: The id by which `RemoteCheck` recognises the requests that this model has sent.
    id: bytes = field(default_factory=new_id)
    sequences: RemoteSequences = field(default_factory=RemoteSequences)
    #: The lanes created so far, each with the event loop to which it belongs.
    lanes: list[tuple[RemoteLane, asyncio.AbstractEventLoop]] = field(default_factory=list)

    def placed_again(self, config: ModelConfig) -> LoadedRemote:
        limit = 1 if self.decoupled else _batch_limit(config, self.max_batch_size, joins=self.joins)
        return replace(self, batch_limit=limit)

    def continue_sequences(
        self, version: str, opened: MutableMapping[tuple[str, str], RemoteSequences]
    ) -> LoadedRemote:
        key = (self.view.config.name, version)
        return replace(self, sequences=opened.setdefault(key, self.sequences))

    def extend(self, check: RequestCheck) -> Callable[[Ticket], None]:
        name = self.view.config.name
        checks: Callable[[Ticket], None] = check
        if self.idle_seconds is not None:
            checks = HolderCheck(name, check, self.idle_seconds, self.sequences.arrivals)
        return RemoteCheck(
            name, self.id, self.remote.urls, checks, self.watch, self.signature, self.max_batch_size
        )

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        model, config = maker.model, self.view.config
        if self.decoupled and model.statistics.responses is None:
            model.statistics.responses = ResponseStatistics()
        idempotent = config.idempotent is not False
        lane = RemoteLane(
            model.name,
            model.version,
            self.remote,
            open_remote(
                self.remote,
                idempotent=idempotent,
                poll=maker.poll,
                id=self.id,
                sequences=self.sequences.servers,
            ),
            tuple(spec.name for spec in self.signature.outputs),
            time_limit=config.execution_timeout_seconds or _TIME_LIMIT,
            responses=model.statistics.responses if self.decoupled else None,
            idempotent=idempotent,
            poll=maker.poll,
        )
        self.lanes.append((lane, asyncio.get_running_loop()))
        self.watch.begin(lane.describe, maker.on_redescribed)
        return list(lane.instances)

    def lone_runs(self) -> Iterable[Run]:
        """Returns nothing, because the other servers warm up their models."""
        return ()

    def close(self) -> None:
        for lane, loop in self.lanes:
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(lane.close(), loop)


def loaded_remote(config: ModelConfig, view: View, remote: RemoteModel, *, placed: Places) -> LoadedRemote:
    """Asks the servers to describe the model. If none responds, uses the configuration, which must then set
    max_batch_size, input and output.

    Raises Unavailable if neither is possible, and InvalidArgument for settings that a remote model cannot
    have.
    """
    _refuse_stages(config, view)
    warnings = remote.warnings + ignored_settings(config, "remote")
    known = None
    try:
        found = known = describe(remote)
    except Unavailable as error:
        if not (config.inputs and config.outputs and config.max_batch_size is not None):
            raise Unavailable(
                f"model '{config.name}' cannot be described by {remote.urls}: {error.message}. To load it"
                " anyway, set max_batch_size, input and output in its configuration"
            ) from None
        warnings += (f"model '{config.name}': no server responds yet: {error.message}",)
        found = _configured(config)
    limit = config.max_batch_size if config.max_batch_size is not None else found.max_batch_size or 0
    decoupled = config.decoupled or found.decoupled
    return LoadedRemote(
        view=view,
        remote=remote,
        joins=found.joins,
        idle_seconds=found.idle_seconds,
        watch=DescriptionWatch(config.name, known),
        backend="remote",
        platform="remote",
        signature=view.fit(found.signature),
        max_batch_size=limit,
        batch_limit=1 if decoupled else _batch_limit(config, limit, joins=found.joins),
        lane="remote",
        placed=placed,
        places=placed.spread(remote.max_in_flight)[: remote.max_in_flight],
        reason=f"{remote.urls} serve it, with at most {remote.max_in_flight} calls in flight",
        decoupled=decoupled,
        warnings=warnings,
    )


def _batch_limit(config: ModelConfig, max_batch_size: int, *, joins: bool) -> int:
    """Returns the maximum number of items in a call.

    By default, requests share a call only if the other servers form batches themselves. A model that is not
    idempotent needs `dynamic_batching` in the configuration, because all requests in a failed call fail.
    """
    wanted = config.dynamic_batching
    if wanted is None:
        wanted = joins and config.idempotent is not False
    return max_batch_size if wanted else 1


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
                f"model '{config.name}': {config.source} has {setting}, which a remote model cannot have:"
                " configure this on the servers that run the model"
            )


def _configured(config: ModelConfig) -> Description:
    first = (-1,) if config.max_batch_size else ()
    inputs, outputs = (
        tuple(structs.replace(spec, shape=(*first, *spec.shape)) for spec in specs)
        for specs in (config.inputs, config.outputs)
    )
    return Description(Signature(inputs, outputs), config.max_batch_size, config.decoupled)
