"""`backline env`: the environments that models ask for, built by uv. One module for each command."""

from __future__ import annotations

import click

from backline.cli.command_group import CommandGroup
from backline.cli.env.build import build_environments
from backline.cli.env.listing import list_environments
from backline.cli.env.prune import prune_environments

_EPILOG = """\b
Examples:
  backline env list
  backline env build models/
  backline env prune --unused-for 30

A model asks for an environment by a requirements.txt, pyproject.toml, uv.lock or .python-version beside its model.py, or by
python = "3.13" in its model.toml. Models that ask for the same share one."""


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Show, build and remove the environments of Python models."""


for subcommand in (list_environments, build_environments, prune_environments):
    command.add_command(subcommand)
