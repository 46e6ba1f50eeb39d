"""The command `backline`. Subcommands are imported when called, so that `serve` starts without the client."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click

import backline
from backline.cli.command import CommandGroup
from backline.engine.errors import BacklineError
from backline.engine.spelling import nearest


def _serve() -> click.Command:
    from backline.cli.serve import command

    return command


def _new() -> click.Command:
    from backline.cli.new import command

    return command


def _run() -> click.Command:
    from backline.cli.run import command

    return command


def _infer() -> click.Command:
    from backline.cli.infer import command

    return command


def _models() -> click.Command:
    from backline.cli.models import command

    return command


def _config() -> click.Command:
    from backline.cli.config import command

    return command


def _env() -> click.Command:
    from backline.cli.env import command

    return command


def _keys() -> click.Command:
    from backline.cli.keys import command

    return command


def _audit() -> click.Command:
    from backline.cli.audit import command

    return command


def _bench() -> click.Command:
    from backline.cli.bench import command

    return command


#: What each command does, and how it is imported.
COMMANDS: dict[str, tuple[str, Callable[[], click.Command]]] = {
    "serve": ("Serve the models of one or more repositories.", _serve),
    "new": ("Create a Python model to start from.", _new),
    "run": ("Run a model once, without a server.", _run),
    "infer": ("Send one request to a model on a server.", _infer),
    "models": ("Show, load, unload and label the models on a server.", _models),
    "config": ("Show, check, explain and convert the configuration of models on disk.", _config),
    "env": ("Show, build and remove the environments of Python models.", _env),
    "keys": ("Create, list, revoke and rotate the API keys of a server.", _keys),
    "audit": ("Show who changed something on a server, and who was refused.", _audit),
    "bench": ("Measure a model on a server under load.", _bench),
}


class LazyCommands(CommandGroup):
    """Imports each command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = COMMANDS[cmd_name][1]()
        if not gc.isenabled():  # main() disabled it
            gc.freeze()
            gc.enable()
        return found

    def help_lines(self) -> list[tuple[str, str]]:
        # Read from COMMANDS, so that --help imports no command.
        return [(name, what) for name, (what, _) in COMMANDS.items()]


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has examples: backline COMMAND --help. BACKLINE_DEBUG=1 shows the traceback of an"
    " error.",
)
@click.version_option(backline.__version__, prog_name="backline")
def command() -> None:
    """A model server: many models in many versions, over HTTP and gRPC.

    \b
    backline serve models/                      serve the models in a folder
    backline models list                        list what the server has
    backline infer add1 --input INPUT0=random   run a model
    backline bench add1                         measure how fast it is
    """


def main() -> NoReturn:
    """Runs the command line.

    Exit status: 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.
    """
    _open_standard_streams()
    debug = os.environ.get("BACKLINE_DEBUG", "") not in ("", "0")
    # Objects created by imports live forever. Scanning them repeatedly took a tenth of the start-up time, and
    # later delayed requests: LazyCommands freezes them, then enables the collector.
    gc.disable()
    try:
        status = command.main(prog_name="backline", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        if debug:
            raise
        _explain(error).show()
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


def _explain(error: click.ClickException) -> click.ClickException:
    """The error, with suggestions for an unknown option that also find a misspelt word of a longer one."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    known = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
    near = nearest(error.option_name, known, 3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return click.UsageError(f"No such option '{error.option_name}'.{hint}", error.ctx)


def _open_standard_streams() -> None:
    """Opens closed standard streams to /dev/null: otherwise a socket could receive what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
