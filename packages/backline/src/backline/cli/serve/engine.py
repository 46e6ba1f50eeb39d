"""Defines the options of `backline serve --engine ray`, which runs replicas on Ray and a server in front."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

import click
from msgspec import Struct

from backline.access.keys import ENVIRONMENT_KEYS, environment_has_keys
from backline.cli.numbers import WholeNumber
from backline.cli.options import Decorator, option
from backline.cli.serve.fields import decorated
from backline.server import ServerOptions
from backline_client.values.errors import InvalidArgument

#: The maximum time for the replicas to start and load their models, in seconds.
_READY_WITHIN = 600.0


class RayOptions(Struct, frozen=True):
    """The options of a deployment on Ray, and the address of Ray.

    `most` is the maximum number of replicas; None means that the number is always `replicas`.
    """

    name: str
    address: str | None
    replicas: int
    most: int | None
    actor_options: dict[str, Any]
    revision: str
    shards: bool
    keep_sequences: bool


def _actor_options(context: click.Context, parameter: click.Parameter, text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"the value is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise click.BadParameter('expected a JSON object, such as {"num_cpus": 2, "memory": 4000000000}')
    return given


_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--engine",
        type=click.Choice(("ray",)),
        help="Let Ray run the models in replicas of the server; this server stands in front of them.",
    ),
    option("--ray-name", default="backline", help="The name of the deployment: clients use ray://NAME."),
    option("--ray-address", help="The address of the Ray cluster; default: RAY_ADDRESS, or this machine's."),
    option(
        "--ray-replicas",
        type=WholeNumber(1),
        default=1,
        metavar="COUNT",
        help="The minimum number of replicas.",
    ),
    option(
        "--ray-max-replicas",
        type=WholeNumber(1),
        metavar="COUNT",
        help="The maximum number of replicas, for a high load; default: the minimum.",
    ),
    option(
        "--ray-actor-options",
        default="{}",
        callback=_actor_options,
        metavar="JSON",
        help="What Ray reserves for each replica: num_cpus, num_gpus, memory, resources.",
    ),
    option(
        "--ray-revision",
        default="",
        help="Any text: replicas of another revision are replaced one by one.",
    ),
    option(
        "--ray-shards",
        is_flag=True,
        help="Let each replica load only as many models as fit into the memory and GPUs reserved for it.",
    ),
    option(
        "--ray-keep-sequences",
        is_flag=True,
        help="Keep the states of sequences outside of replicas, so that another replica can continue a"
        " sequence.",
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --engine and the --ray options to a command. The command receives `engine`, as RayOptions; None if
    no engine is chosen.
    """

    @wraps(command)
    def with_engine(
        *arguments: Any,
        engine: str | None,
        ray_name: str,
        ray_address: str | None,
        ray_replicas: int,
        ray_max_replicas: int | None,
        ray_actor_options: dict[str, Any],
        ray_revision: str,
        ray_shards: bool,
        ray_keep_sequences: bool,
        **others: Any,
    ) -> Any:
        ray = RayOptions(
            ray_name,
            ray_address,
            ray_replicas,
            ray_max_replicas,
            ray_actor_options,
            ray_revision,
            ray_shards,
            ray_keep_sequences,
        )
        return command(*arguments, engine=ray if engine else None, **others)

    return decorated(with_engine, _OPTIONS)


@contextmanager
def in_front(options: ServerOptions, engine: RayOptions | None) -> Iterator[ServerOptions]:
    """Yields the options of the server to run: `options`, or those of a server in front of a new deployment.

    The deployment keeps running after the server ends. Raises BacklineError if Ray cannot run the deployment.
    """
    if engine is None:
        yield options
        return
    from backline_client.client.ray_directory import require_ray

    require_ray()
    _check_keys(options)
    # Imported by name: the core knows no plug-in.
    deployment = import_module("backline.plugins.ray.deployment").deployment
    front_of = import_module("backline.plugins.ray.front").Front

    deployed = deployment(
        *map(str, options.repositories),
        name=engine.name,
        replicas=engine.replicas,
        max_replicas=engine.most,
        revision=engine.revision,
        ray_actor_options=engine.actor_options,
        shards=engine.shards,
        keep_sequences=engine.keep_sequences,
        address=engine.address,
        options=options,
    )
    deployed.wait_ready(_READY_WITHIN)
    front = front_of(deployed)
    try:
        yield front.options(options)
    finally:
        front.close()


def _check_keys(options: ServerOptions) -> None:
    """Raises InvalidArgument if the replicas would need no key, although this server needs one, or if this
    server has no key for requests to the replicas.
    """
    from backline_client.client.credentials import (
        VARIABLE,
    )  # imported here, because most servers need no client

    if options.auth is None:
        if environment_has_keys():
            raise InvalidArgument(
                f"with --engine ray, keys in environment variables ({', '.join(ENVIRONMENT_KEYS)}) would not"
                " protect the replicas: pass a file of keys with --auth, and put it on every node"
            )
    elif not os.environ.get(VARIABLE):
        raise InvalidArgument(
            f"with --engine ray and --auth, the replicas require a key too: set {VARIABLE} to a key with"
            " the scopes infer and read, which this server sends with its requests to the replicas"
        )
