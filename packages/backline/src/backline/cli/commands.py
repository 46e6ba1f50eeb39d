"""The door for commands: the record of one, and the built-in ones. Help and completion read only these."""

from __future__ import annotations

from typing import Final

from backline.doors import Door, Plugin


class CommandPlugin(Plugin, frozen=True, kw_only=True):
    """A command of `backline`. `target` is its click command, `summary` its line in `backline --help`, and
    `group` the heading under which that line stands.
    """

    group: str = "Other commands"
    #: The function ("module:function") that does in a program what the command does in a shell. It is offered
    #: as `backline.NAME` if the command is built in. Empty if there is none.
    function: str = ""

    @property
    def serves(self) -> tuple[str, ...]:
        return (f"backline {self.name}",)


def _core(group: str, summaries: dict[str, str]) -> list[CommandPlugin]:
    """Returns the records of commands, whose modules in backline.cli have the same names."""
    return [
        CommandPlugin(name=name, summary=summary, group=group, target=f"backline.cli.{name}:command")
        for name, summary in summaries.items()
    ]


#: The commands of the core, in the order in which `backline --help` lists them.
PLUGINS: Final = (
    *_core(
        "Serve models",
        {
            "serve": "Serve the models of one or more repositories.",
            "demo": "Serve a small network, and use it to transcribe a melody.",
            "tritonserver": "Serve models with Triton's command line and defaults.",
        },
    ),
    *_core(
        "Use models",
        {
            "run": "Run a model once, without a server.",
            "infer": "Send one request to a model on a server.",
            "client": "Write typed clients for models.",
            "models": "Show, load, unload and label the models on a server.",
        },
    ),
    *_core(
        "Prepare models and servers",
        {
            "new": "Create a Python model or a plug-in to start from.",
            "config": "Show, check, explain and convert the configuration of models on disk.",
            "env": "Show, build and remove the environments of Python models.",
        },
    ),
    *_core(
        "Control access",
        {
            "keys": "Create, list, revoke and rotate the API keys of a server.",
            "certs": "Create certificates for a server and its clients, for development.",
            "login": "Store the API key of a server for this user.",
            "logout": "Delete the stored API key of a server.",
            "audit": "Show who changed something on a server, and who was refused.",
        },
    ),
    *_core(
        "Watch and measure",
        {
            "watch": "Show requests to a server as they end.",
            "logs": "Show the log of a server on this machine.",
        },
    ),
    *_core(
        "Other commands",
        {
            "plugins": "List the plug-ins, built in and installed.",
            "completion": "Print the script that completes commands in a shell.",
        },
    ),
)

COMMANDS: Final = Door(
    "backline.commands",
    CommandPlugin,
    (
        "backline.cli.commands",
        "backline.plugins.tools.image",
        "backline.plugins.tools.top",
        "backline.plugins.tools.doctor",
        "backline.plugins.tools.bench",
        "backline.plugins.tools.tune",
        "backline.plugins.traffic.commands",
        "backline.plugins.tools.jobs",
    ),
)
