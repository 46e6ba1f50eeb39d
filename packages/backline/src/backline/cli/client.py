"""`backline client`: writes typed clients for models."""

from __future__ import annotations

from pathlib import Path

import click

from backline.cli.command import CommandGroup
from backline.cli.connection import connection_options, with_suggestion
from backline.cli.options import version_option
from backline_client.client.generator import generate_module
from backline_client.client.options import ClientOptions
from backline_client.client.sync import Client
from backline_client.values.errors import NotFound

_EPILOG = """\b
Examples:
  backline client generate add1
  backline client generate basic_pitch --url grpc://localhost:8001 -o notes_client.py"""


@click.group(cls=CommandGroup)
def command() -> None:
    """Write typed clients for models."""


@command.command(epilog=_EPILOG)
@click.argument("model")
@version_option()
@click.option(
    "--output",
    "-o",
    "destination",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file instead of standard output.",
)
@connection_options
def generate(
    url: str, options: ClientOptions, model: str, model_version: str, destination: Path | None
) -> None:
    """Write a Python module that calls MODEL with typed inputs and outputs.

    The module has dataclasses for the inputs and the outputs, and two classes that call the model, one of
    them for asyncio. Generate the module again when the signature of the model changes.
    """
    with Client(url, options) as client:
        handle = client.model(model, model_version)
        try:
            config = handle.config()
            metadata = handle.metadata().completed(config)
        except NotFound as error:
            raise with_suggestion(client, model, error) from None
    policy = config.get("model_transaction_policy") or {}
    text = generate_module(metadata, decoupled=bool(policy.get("decoupled")))
    if destination is None:
        click.echo(text, nl=False)
    else:
        destination.write_text(text, encoding="utf-8")
        click.echo(f"wrote {destination}")
