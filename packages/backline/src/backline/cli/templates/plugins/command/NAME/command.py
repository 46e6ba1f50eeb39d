"""`backline NAME`."""

from __future__ import annotations

import click

from backline.cli.connection import connection_options
from backline_client.client.options import ClientOptions
from backline_client.client.sync import Client


@click.command(epilog="\b\nExamples:\n  backline NAME\n  backline NAME --url http://server:8000")
@connection_options
def command(url: str, options: ClientOptions) -> None:
    """Print the names of the models on a server."""
    with Client(url, options) as client:  # its errors are shown in one line
        for entry in client.models():
            click.echo(entry.name)
