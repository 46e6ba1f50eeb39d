"""Runs the command `backline`. To start quickly, imports a subcommand only when it is called."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

import backline
from backline.cli.command import CommandGroup
from backline.cli.commands import COMMANDS, PLUGINS, CommandPlugin
from backline.system.garbage import exempt_imports
from backline_client.values.errors import BacklineError
from backline_client.values.names import printable
from backline_client.values.spelling import nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class LazyCommands(CommandGroup):
    """A group that imports a subcommand only when the subcommand is called.

    The commands of the core are found without importing a plug-in. The installed distributions are only
    scanned for a name that no built-in command has.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [record.name for record in COMMANDS.built_in]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        record = _record(cmd_name)
        if record is None:
            return None
        with _one_blas_thread():
            found: click.Command = record.load()
        if not gc.isenabled():  # main() has disabled the garbage collector
            exempt_imports()
        return found

    def known_commands(self) -> list[str]:
        return [record.name for record in COMMANDS.all]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        groups: dict[str, list[CommandPlugin]] = {}
        for record in COMMANDS.built_in:
            groups.setdefault(record.group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                # Names are padded, so that the texts of all groups start in the same column.
                formatter.write_dl([(f"{record.name:{width}}", record.summary) for record in records])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = (record for record in COMMANDS.built_in if record.name.startswith(incomplete))
        return [
            *(CompletionItem(record.name, help=record.summary) for record in names),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


def _record(name: str) -> CommandPlugin | None:
    """Returns the command with this name. Raises InvalidArgument if it is installed but cannot be used."""
    for record in PLUGINS:
        if record.name == name:
            return record
    return None if name.startswith("-") else COMMANDS.find(name, lambda record: record.name == name)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Keeps numpy from starting threads for linear algebra when it is imported in the `with` block. Has no
    effect if the environment already sets the number of threads.

    Nothing in this process uses these threads. OpenBLAS would start one thread per core, and each would spin
    for a while before it sleeps: on two cores, this doubles the CPU time of importing numpy. The variable is
    removed afterwards, because worker processes would inherit it.
    """
    if any(name in os.environ for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")):
        yield
        return
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OPENBLAS_NUM_THREADS"]


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has examples: backline COMMAND --help. BACKLINE_DEBUG=1 shows the traceback of an"
    " error. backline plugins list also shows the commands of installed plug-ins.",
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
