"""Runs the command `backline`. To start quickly, imports a subcommand only when it is called."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import NoReturn

from backline.cli.quick_imports import quick_imports

with quick_imports():
    import click

    import backline
    from backline.cli.command import CommandGroup
    from backline.cli.quick_dataclasses import quick_dataclasses
    from backline.engine.errors import BacklineError
    from backline.engine.names import printable
    from backline.engine.spelling import nearest
    from backline.system.garbage import exempt_imports

#: The help text of each subcommand. The subcommand NAME is the object `command` in the module
#: backline.cli.NAME.
COMMANDS = {
    "serve": "Serve the models of one or more repositories.",
    "demo": "Serve a small network, and use it to transcribe a melody.",
    "tritonserver": "Serve models with Triton's command line and defaults.",
    "new": "Create a Python model to start from.",
    "run": "Run a model once, without a server.",
    "infer": "Send one request to a model on a server.",
    "client": "Write typed clients for models.",
    "models": "Show, load, unload and label the models on a server.",
    "config": "Show, check, explain and convert the configuration of models on disk.",
    "env": "Show, build and remove the environments of Python models.",
    "image": "Build a container image for the models of a repository.",
    "service": "Install, show and remove a server as a service of this user, under systemd.",
    "keys": "Create, list, revoke and rotate the API keys of a server.",
    "certs": "Create certificates for a server and its clients, for development.",
    "login": "Store the API key of a server for this user.",
    "logout": "Delete the stored API key of a server.",
    "audit": "Show who changed something on a server, and who was refused.",
    "top": "Show what the models on a server are doing now.",
    "watch": "Show requests to a server as they end.",
    "logs": "Show the log of a server on this machine.",
    "doctor": "Find out what is wrong with a machine, with models or with a server.",
    "bench": "Measure a model on a server under load.",
    "tune": "Search for the best settings of a model on this machine.",
    "completion": "Print the script that completes commands in a shell.",
}


class LazyCommands(CommandGroup):
    """A group that imports a subcommand only when the subcommand is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with quick_dataclasses(), quick_imports():
            found: click.Command = import_module(f"backline.cli.{cmd_name}").command
        if not gc.isenabled():  # main() has disabled the garbage collector
            exempt_imports()
        return found

    def help_lines(self) -> list[tuple[str, str]]:
        # The texts come from COMMANDS, so that --help does not import any subcommand.
        return list(COMMANDS.items())


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


def tritonserver() -> NoReturn:
    """Runs `backline tritonserver`. The script that calls this function may be linked as `tritonserver`."""
    main(["tritonserver", *sys.argv[1:]])


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line `arguments`; if it is None, that in `sys.argv`. Always ends the process.

    Exit status: 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.
    """
    _open_standard_streams()
    debug = os.environ.get("BACKLINE_DEBUG", "") not in ("", "0")
    # The objects that imports create live forever. Scanning them repeatedly would take the garbage collector
    # a tenth of the start-up time, and later delay requests. LazyCommands exempts these objects and then
    # enables the collector.
    gc.disable()
    try:
        status = command.main(arguments, prog_name="backline", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        if debug:
            raise
        explained = _explain(error)
        explained.message = _printable_lines(explained.message)  # type: ignore[misc]
        explained.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print(file=sys.stderr)
        status = 130
    except BrokenPipeError:  # as in `backline models list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (BacklineError, OSError, RuntimeError) as error:
        text = error.message if isinstance(error, BacklineError) else _system_error(error)
        if debug or text is None:
            raise
        click.secho(
            "Error: ",
            nl=False,
            err=True,
            fg="red",
            bold=True,
            color=None if "NO_COLOR" not in os.environ else False,
        )
        # The text of a failed load ends with ";" and a newline, as in Triton.
        click.echo(_printable_lines(text.rstrip("\n").removesuffix(";")), err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _system_error(error: OSError | RuntimeError) -> str | None:
    """Returns a text for an error of the operating system: the limit that was reached, or else the reason
    and, if known, the file. Returns None for an error that does not come from the operating system.
    """
    from backline.system.exhaustion import exhausted  # imported here, because it is rarely needed

    if limit := exhausted(error):
        return limit
    if isinstance(error, RuntimeError):
        return None
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"'{error.filename}': {error.strerror}"


def _printable_lines(text: str) -> str:
    """Escapes all control characters except line ends in an error text, because a server may have sent the
    text.
    """
    return "\n".join(map(printable, text.split("\n")))


def _explain(error: click.ClickException) -> click.ClickException:
    """Returns the error; if it is about an unknown option, one that suggests options with similar names."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    known = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
    near = nearest(error.option_name, known, 3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return click.UsageError(f"No such option '{error.option_name}'.{hint}", error.ctx)


def _open_standard_streams() -> None:
    """Opens closed standard streams on /dev/null; otherwise, printed text could be written to a socket."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is that of the closed stream
