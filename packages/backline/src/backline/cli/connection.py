"""The options with which commands connect to a server, and hints for errors about unknown models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from backline.cli.numbers import Number
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex
from backline_client.client.sync import Client
from backline_client.values.errors import BacklineError, NotFound
from backline_client.values.spelling import nearest


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --url and other connection options. The command receives `url`, and `options` as ClientOptions."""
    return click.option(
        "--url",
        "-u",
        envvar="BACKLINE_URL",
        show_envvar=True,
        default="http://localhost:8000",
        show_default=True,
        help="http://, https://, grpc://, grpcs://, unix:PATH, or inproc:///path/to/repository?model=NAME to"
        " load models in this process.",
    )(client_options(function))


def client_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds connection options other than --url. The command receives `options`, as ClientOptions."""

    @click.option(
        "--timeout",
        type=Number(0, min_open=True),
        default=60.0,
        show_default=True,
        help="Seconds that each request may take.",
    )
    @click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:VALUE",
        help="A header field to send with every request; repeatable.",
    )
    @click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False),
        help="PEM file of the CA that signed the server's certificate.",
    )
    @click.option(
        "--certificate",
        type=click.Path(exists=True, dir_okay=False),
        help="PEM file of a client certificate.",
    )
    @click.option(
        "--key",
        type=click.Path(exists=True, dir_okay=False),
        help="PEM file with the key of the client certificate.",
    )
    @click.option(
        "--api-key",
        callback=_api_key,
        metavar="KEY|@FILE",
        help="The API key, or @FILE to read it from a file. Other users can see a KEY in the process list:"
        " prefer a file, the environment variable BACKLINE_KEY, or `backline login`.",
    )
    @click.option("--insecure", is_flag=True, help="Accept any certificate (https only).")
    @wraps(function)
    def with_options(
        timeout: float,
        headers: tuple[str, ...],
        ca: str | None,
        certificate: str | None,
        key: str | None,
        api_key: str | None,
        insecure: bool,
        **others: Any,
    ) -> Any:
        options = ClientOptions(
            timeout=timeout,
            headers=dict(map(_header, headers)),
            verify=not insecure,
            ca=ca,
            certificate=certificate,
            key=key,
            max_connections=4096,
            api_key=api_key,
        )
        return function(options=options, **others)

    return with_options


def _api_key(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"'{text[1:]}' cannot be read: {error}") from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise click.BadParameter(f"{text!r} is not of the form NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()


def with_suggestion(client: Client, name: str, error: NotFound) -> NotFound:
    """Returns the error with a hint: the model on the server whose name is most similar to `name` or, if no
    name is similar, the names of all models there.

    Returns the error unchanged if the server has the model, or does not list its models.
    """
    try:
        return nearest_model(name, client.models(), error)
    except BacklineError:
        return error


def nearest_model(name: str, index: Sequence[ModelIndex], error: NotFound) -> NotFound:
    """Returns the error with a hint: the model in `index` whose name is most similar to `name` or, if no name
    is similar, the names of all models there.

    Returns the error unchanged if `index` contains `name`.
    """
    known = sorted({entry.name for entry in index})
    if name in known:
        return error
    near = nearest(name, known, 1)
    hint = f"Did you mean '{near[0]}'?" if near else f"The server has {', '.join(known) or 'no model'}."
    return NotFound(f"{error.message.rstrip('.')}. {hint}")
