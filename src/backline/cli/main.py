"""The command `backline`. Each subcommand is a module of its own, imported when it is called: `serve` starts without the client."""

from __future__ import annotations

import gc
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import click

import backline
from backline.engine.errors import BacklineError

#: The commands and what they do; each is the object `command` of the module backline.cli.<name>.
COMMANDS = {
    "serve": "Serve the models of one or more repositories.",
    "new": "Write a Python model to begin with.",
    "run": "Run a model once, without a server.",
    "infer": "Run a model of a server once.",
    "models": "Show, load, unload and label the models of a server.",
    "config": "Show, check, explain and convert configurations of models on disk.",
    "env": "Show, build and remove the environments of Python models.",
    "bench": "Measure a model of a server under load.",
}


class Commands(click.Group):
    """Commands that are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"backline.cli.{cmd_name}").command
        if not gc.isenabled():  # see main
            gc.freeze()
            gc.enable()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, COMMANDS, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands are {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, so that --help imports no command.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has examples: backline COMMAND --help. BACKLINE_DEBUG=1 shows the traceback of an error.",
)
@click.version_option(backline.__version__, prog_name="backline")
def command() -> None:
    """A model server: many models, many versions, over HTTP and gRPC.

    \b
    backline serve models/                    serve what is in a folder
    backline models list                      what a server has
    backline infer add1 --input INPUT0=random run a model
    backline bench add1                       how fast is it
    """


def main() -> NoReturn:
    """Runs the command line. Exit status: 0, 1 for a failure, 2 for wrong options, 130 for Ctrl-C."""
    _open_standard_streams()
    debug = os.environ.get("BACKLINE_DEBUG", "") not in ("", "0")
    # What imports make stays: to look through it for garbage again and again took a tenth of the start, and later a request now and then.
    gc.disable()
    try:
        status = command.main(prog_name="backline", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        if debug:
            raise
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print(file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `backline models list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (BacklineError, OSError) as error:
        if debug:
            raise
        text = error.message if isinstance(error, BacklineError) else str(error)
        click.secho(
            "Error: ",
            nl=False,
            err=True,
            fg="red",
            bold=True,
            color=None if "NO_COLOR" not in os.environ else False,
        )
        click.echo(text, err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _open_standard_streams() -> None:
    """A standard stream that was closed stays silent: its number must not become a socket's, which libraries would print into."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
