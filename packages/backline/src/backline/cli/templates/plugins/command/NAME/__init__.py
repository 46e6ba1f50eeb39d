"""A command of Backline: `backline NAME`."""

from backline.cli.commands import CommandPlugin

# This module is imported to list the plug-in: keep further imports in command.py.
PLUGIN = CommandPlugin(
    name="NAME",
    summary="Print the names of the models on a server.",
    target="NAME.command:command",
    api_version=1,
)
