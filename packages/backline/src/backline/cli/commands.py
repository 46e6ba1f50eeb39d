"""The built-in commands: a table with which help and completion need not import them."""

from __future__ import annotations

from importlib import import_module
from typing import Final, NamedTuple

import click


class CommandRecord(NamedTuple):
    """A command of `backline`. `target` is where its click command is found, as "module:attribute", and
    `group` is the heading under which `backline --help` lists it.
    """

    name: str
    summary: str
    group: str
    target: str

    def load(self) -> click.Command:
        """Imports the command."""
        module, _, attribute = self.target.partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found


def _built_in(group: str, summaries: dict[str, str]) -> list[CommandRecord]:
    """Returns the records of commands, whose modules in backline.cli have the same names."""
    return [
        CommandRecord(name, summary, group, f"backline.cli.{name}:command")
        for name, summary in summaries.items()
    ]


#: The built-in commands, in the order in which `backline --help` lists them.
BUILT_IN: Final = (
    *_built_in(
        "Serve models",
        {
            "serve": "Serve the models of one or more repositories.",
            "demo": "Serve a small network, and use it to transcribe a melody.",
            "tritonserver": "Serve models with Triton's command line and defaults.",
        },
    ),
    *_built_in(
        "Use models",
        {
            "run": "Run a model once, without a server.",
            "infer": "Send one request to a model on a server.",
            "client": "Write typed clients for models.",
            "models": "Show, load, unload and label the models on a server.",
        },
    ),
    *_built_in(
        "Prepare models and servers",
        {
            "new": "Create a Python model to start from.",
            "config": "Show, check, explain and convert the configuration of models on disk.",
            "env": "Show, build and remove the environments of Python models.",
            "image": "Build a container image for the models of a repository.",
        },
    ),
    *_built_in(
        "Control access",
        {
            "keys": "Create, list, revoke and rotate the API keys of a server.",
            "certs": "Create certificates for a server and its clients, for development.",
            "login": "Store the API key of a server for this user.",
            "logout": "Delete the stored API key of a server.",
            "audit": "Show who changed something on a server, and who was refused.",
        },
    ),
    *_built_in(
        "Watch and measure",
        {
            "top": "Show what the models on a server are doing now.",
            "watch": "Show requests to a server as they end.",
            "logs": "Show the log of a server on this machine.",
            "doctor": "Find out what is wrong with a machine, with models or with a server.",
            "bench": "Measure a model on a server under load.",
            "tune": "Search for the best settings of a model on this machine.",
        },
    ),
    *_built_in("Other commands", {"completion": "Print the script that completes commands in a shell."}),
)
