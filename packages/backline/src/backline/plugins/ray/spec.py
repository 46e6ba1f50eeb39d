"""The specification of a deployment's replicas, and the state that a replica reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from backline.lifecycle.labels.store import find_place
from backline.lifecycle.options import ALL_MODELS
from backline.observe.tracing.settings import TraceConfig
from backline.repository.location import split_name
from backline.server import ServerOptions
from backline_client.values.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """The options of each replica's server, except its addresses and state folder, and the resources that Ray
    reserves for the replica.

    `actor_options` are Ray's actor options, such as num_cpus, num_gpus, memory and resources. `revision` is
    any text. A new text causes all replicas to be replaced even if nothing else here has changed, which is
    useful when files in the repository have changed. `models` are the models of a shard; None means all
    models of the repositories. `states` is the name of the actor that keeps the states of sequences; empty if
    there is no such actor.
    """

    options: ServerOptions
    actor_options: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    models: tuple[str, ...] | None = None
    states: str = ""

    @property
    def digest(self) -> str:
        """A hash that differs between specifications: ten hexadecimal digits."""
        parts = (
            self.options,
            sorted((name, repr(value)) for name, value in self.actor_options.items()),
            self.revision,
            self.models,
            self.states,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def replica_options(options: ServerOptions) -> ServerOptions:
    """Returns the options of replicas, derived from those of the server in front. Paths become absolute.

    The options for TLS, shared memory, restricted APIs, forwarded header fields and the exit after a failed
    load are left out, because they concern only the server in front. If traces go to a file, the options for
    traces are left out, because all replicas on a node would write to this file.

    Raises InvalidArgument if labels cannot be stored where the options say, or no model would be served.
    """
    lifecycle = options.lifecycle
    if lifecycle.mode == "explicit" and not lifecycle.load_models:
        raise InvalidArgument(
            "replicas would serve no model, because requests cannot load models in them: name the models to"
            " serve with --load-model, or leave out --model-control-mode"
        )
    if lifecycle.labels and lifecycle.mode == "none":
        # The same models are loaded, but labels can be moved.
        lifecycle = replace(lifecycle, mode="explicit", load_models=(ALL_MODELS,))
    return replace(
        options,
        repositories=tuple(map(_everywhere, options.repositories)),
        lifecycle=replace(
            lifecycle,
            labels=shared_labels(options),
            state_folder=None,
            cache_folder=None if lifecycle.cache_folder is None else lifecycle.cache_folder.absolute(),
        ),
        exit_on_error=False,
        tls=None,
        metrics_plain=False,
        tls_grpc_only=False,
        auth=None if options.auth is None else options.auth.absolute(),
        allow_client_shm=False,
        http_restricted_apis=(),
        grpc_restricted_protocols=(),
        http_header_forward_pattern="",
        grpc_header_forward_pattern="",
        trace=options.trace if options.trace.file is None else TraceConfig(),
    )


def shared_labels(options: ServerOptions) -> str:
    """Returns a value for `LifecycleOptions.labels` that makes servers store labels in the same place even if
    their repositories or working directories differ; "" if the options name no place. Raises InvalidArgument
    if labels cannot be stored there.
    """
    if not options.lifecycle.labels:
        return ""
    _, location = split_name(_everywhere(options.repositories[0]))
    place = find_place(options.lifecycle.labels, (location,))
    return place if "://" in place else str(Path(place).absolute())


def _everywhere(repository: str | Path) -> str:
    """Returns a repository as a URL or an absolute path, which does not depend on the working directory."""
    path = Path(repository)
    return str(path.absolute()) if path.exists() else str(repository)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The address and the scaling signal that a replica reports. `models` contains the name and the version
    of each model version that is ready. `socket` is the path of the replica's Unix socket, which programs on
    the same node can use; empty if it has none.
    """

    url: str
    ready: bool
    utilisation: float
    desired_replicas: float
    pid: int
    node: str
    models: tuple[tuple[str, str], ...] = ()
    socket: str = ""
