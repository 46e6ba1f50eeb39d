"""`backline plugins`: lists the plug-ins, and says which of them cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Final

import click

from backline.backends.plugin import BACKENDS
from backline.cli.command import CommandGroup
from backline.cli.commands import COMMANDS
from backline.cli.options import json_option
from backline.cli.table import print_table
from backline.dialects.plugin import DIALECTS
from backline.doors import API_VERSION, Door, Plugin
from backline.repository.plugin import REPOSITORIES

#: All doors, in the order of the list.
DOORS: Final[tuple[Door[Any], ...]] = (BACKENDS, DIALECTS, REPOSITORIES, COMMANDS)
_COLUMNS = ("kind", "name", "serves", "from", "needs")
_BUILT_IN = "built in"
_EXTRA_OF = re.compile(r"""^([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['"]([^'"]+)['"]""")
_EPILOG = """\b
Examples:
  backline plugins list
  backline plugins list --json | jq '.[] | select(.problem != "")'

The exit status is 1 if an installed plug-in cannot be used."""


@dataclass(frozen=True, slots=True)
class ListedPlugin:
    """A plug-in as `backline plugins list` shows it.

    `source` is "built in", or the distribution with its version. `needs` is the extra of Backline, or the
    distribution, that installs what the plug-in needs, and `installed` says whether it is there. `problem`
    says why the plug-in cannot be used; "" if it can.
    """

    kind: str
    name: str
    serves: tuple[str, ...]
    source: str
    needs: str
    installed: bool
    api_version: int | None
    page: str
    problem: str

    def row(self) -> tuple[str, ...]:
        needs = self.needs if self.installed else f"{self.needs} (not installed)"
        return (self.kind, self.name, ", ".join(self.serves) or "-", self.source, needs or "-")


def list_plugins() -> Iterator[ListedPlugin]:
    """Yields the plug-ins of all doors: of each door, the built-in ones first."""
    extras = _extras()
    for door in DOORS:
        kind = door.group.rpartition(".")[2]
        for record in door.built_in:
            yield _listed(kind, record, _BUILT_IN, extras)
        for one in door.installed:
            if one.record is not None:
                yield _listed(kind, one.record, one.distribution, extras)
            else:
                yield ListedPlugin(kind, one.name, (), one.distribution, "", True, None, "", one.problem)


def _listed(kind: str, record: Plugin, source: str, extras: dict[str, list[str]]) -> ListedPlugin:
    needed = extras.get(record.extra, [record.extra] if record.extra else [])
    there = all(any(_is_installed(name + suffix) for suffix in ("", "-gpu", "-cpu")) for name in needed)
    return ListedPlugin(
        kind,
        record.name,
        record.serves,
        source,
        f"backline[{record.extra}]" if record.extra in extras else record.extra,
        there,
        record.api_version or API_VERSION,
        record.page,
        "",
    )


def _extras() -> dict[str, list[str]]:
    """Returns the packages of each extra of Backline."""
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("backline") or ():
        if match := _EXTRA_OF.match(requirement):
            found.setdefault(match[2], []).append(match[1])
    return found


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """List the plug-ins: backends, dialects, repositories and commands, built in and installed."""


@command.command("list", epilog=_EPILOG)
@json_option()
def list_command(as_json: bool) -> None:
    """List the plug-ins with what they serve, where they come from and what they need.

    Imports the record of each installed plug-in, but not its code.
    """
    found = list(list_plugins())
    problems = [one.problem for one in found if one.problem]
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        print_table(_COLUMNS, [one.row() for one in found if not one.problem])
        for problem in problems:
            click.echo(f"not used: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)
