"""`backline doctor`: finds what is wrong with a machine, its models, or a running server."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import groupby
from typing import Any

import click

from backline.cli.connection import client_options
from backline.cli.options import json_option
from backline.cli.serve.options import server_options
from backline.plugins.tools.doctor.examination import doctor
from backline.plugins.tools.doctor.finding import Diagnosis, Severity
from backline.server import ServerOptions
from backline_client.client.options import ClientOptions
from backline_client.values.names import printable

_EPILOG = """\b
Examples:
  backline doctor
  backline doctor models/
  backline doctor models/ --host 0.0.0.0 --auth keys.toml --fix
  backline doctor http://server:8000 --verbose
  backline doctor models/ --json | jq '.findings[] | select(.severity == "error")'

All options and environment variables of `backline serve` are accepted too: the machine and the models are
checked for a server with these options. Exit status 1 means that there are errors."""


class DoctorCommand(click.Command):
    """A command whose help omits the options that it shares with `backline serve`, and most options for
    connections.
    """

    _OWN = frozenset({"fix", "verbose", "as_json", "help", "api_key", "ca", "timeout"})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = [
            record
            for param in self.get_params(ctx)
            if param.name in self._OWN and (record := param.get_help_record(ctx)) is not None
        ]
        with formatter.section("Options"):
            formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "[URL|REPO...]"]


def _as_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    """Renames the argument `options` from `client_options` to `connection`, because `server_options` also
    passes an argument `options`.
    """

    @wraps(function)
    def renamed(options: ClientOptions, **others: Any) -> Any:
        return function(connection=options, **others)

    return renamed


@click.command(cls=DoctorCommand, epilog=_EPILOG)
@click.option("--fix", is_flag=True, help="Repair what can be repaired safely, such as file permissions.")
@click.option("--verbose", "-v", is_flag=True, help="Also list the checks that passed.")
@json_option()
@client_options
@_as_connection
@server_options
def command(
    options: ServerOptions, connection: ClientOptions, fix: bool, verbose: bool, as_json: bool
) -> None:
    """Find out what is wrong with this machine, with the models in a repository, or with a running server.

    Given the URL of a server, checks the server and its models. Otherwise checks this machine, the installed
    packages, files, ports and, if a repository is given, its models.
    """
    examination = doctor(options=options, connection=connection, fix=fix)
    if as_json:
        found = [one.document() for one in examination.diagnoses]
        print(json.dumps({"findings": found, "fixed": examination.repairs}))
    else:
        print_diagnoses(examination.diagnoses, verbose=verbose)
        for outcome in examination.repairs:
            print(outcome)
        if not fix and any(one.finding.repair is not None for one in examination.diagnoses):
            print("Run again with --fix to correct file permissions and remove leftovers")
    if not examination.healthy:
        raise click.exceptions.Exit(1)


_COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_PLURALS = {Severity.ERROR: "errors", Severity.WARNING: "warnings", Severity.NOTE: "notes"}
_WIDTH = 100
_INDENT = " " * 10


def print_diagnoses(diagnoses: Sequence[Diagnosis], *, verbose: bool) -> None:
    """Prints the findings by group, and a summary. Unless `verbose`, passed checks are counted but not
    listed.
    """
    for group, of_group in groupby(diagnoses, key=lambda one: one.group):
        members = list(of_group)
        passed = sum(one.finding.severity is Severity.OK for one in members)
        click.secho(f"{group} ({passed} of {len(members)} ok)", bold=True)
        for one in members:
            if verbose or one.finding.severity is not Severity.OK:
                _print(one)
    counts = Counter(one.finding.severity for one in diagnoses)
    parts = [_counted(counts[severity], severity) for severity in _PLURALS if counts[severity]]
    click.echo(f"\n{', '.join(parts) or 'Nothing is wrong'}; {counts[Severity.OK]} checks passed")


def _print(diagnosis: Diagnosis) -> None:
    finding = diagnosis.finding
    label = click.style(f"{finding.severity.value:7}", fg=_COLOURS[finding.severity])
    lines = _wrapped(printable(finding.what))
    click.echo(f"  {label} {lines[0]}")
    for line in lines[1:]:
        click.echo(f"{_INDENT}{line}")
    for text in (finding.why, finding.advice and f"-> {finding.advice}"):
        for line in _wrapped(printable(text)) if text else ():
            click.echo(f"{_INDENT}{line}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False) or [""]


def _counted(count: int, severity: Severity) -> str:
    return f"{count} {_PLURALS[severity] if count > 1 else severity.value}"
