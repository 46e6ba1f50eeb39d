"""`backline models`: shows and changes the models on a server."""

from __future__ import annotations

import click

from backline.cli.command import CommandGroup
from backline.cli.models.labels import label_model, promote_version, roll_back, show_history
from backline.cli.models.load import load_model, refresh_models, unload_model
from backline.cli.models.record import record_requests
from backline.cli.models.show import list_models, show_model

_EPILOG = """\b
Examples:
  backline models list
  backline models show add1
  backline models load add1
  backline models promote add1 4
  backline models rollback add1
  backline models history"""


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Show, load, unload and label the models on a server."""


for subcommand in (
    list_models,
    show_model,
    load_model,
    unload_model,
    label_model,
    promote_version,
    roll_back,
    show_history,
    refresh_models,
    record_requests,
):
    command.add_command(subcommand)
