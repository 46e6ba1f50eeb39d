"""The doors through which plug-ins arrive: backends, dialects, repository schemes and commands.

A plug-in is a record that says what it serves and where its code is. Built-in plug-ins are named in a static table,
because a scan of the installed distributions takes 40 ms. The distributions are scanned only for what no built-in
plug-in serves, and to list all plug-ins. A distribution offers records as entry points of the door's group:

    [project.entry-points."backline.backends"]
    toy = "toy_backend:PLUGIN"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from backline_client.values.errors import InvalidArgument

#: The version of the interfaces that plug-ins implement. A plug-in for another version is refused.
API_VERSION: Final = 1


class Plugin(Struct, frozen=True, kw_only=True):
    """What every plug-in says of itself.

    `target` is where the code is, as "module:attribute"; it is imported on first use. `extra` is the extra of Backline,
    or the distribution, that installs what the plug-in needs, and `page` its page of the documentation.
    """

    name: str
    target: str
    summary: str = ""
    extra: str = ""
    page: str = ""
    api_version: int = API_VERSION

    def load(self) -> Any:
        """Imports the plug-in's code."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


Record = TypeVar("Record", bound=Plugin)


class Installed(Struct, Generic[Record], frozen=True):
    """A plug-in of an installed distribution. `record` is None if it cannot be used, and `problem` says why."""

    name: str
    distribution: str
    record: Record | None
    problem: str = ""


class Door(Generic[Record]):
    """One kind of plug-in. `group` is its group of entry points.

    `built_in` names the modules of the built-in plug-ins, each of which has its records in a tuple PLUGINS. A folder
    that was deleted offers nothing.
    """

    def __init__(self, group: str, kind: type[Record], built_in: tuple[str, ...]) -> None:
        self.group = group
        self._kind = kind
        self._modules = built_in

    @cache  # noqa: B019 (doors are module constants)
    def built_in(self) -> tuple[Record, ...]:
        """Returns the records of the built-in plug-ins, in the order of the table."""
        return tuple(record for module in self._modules for record in _records(module))

    @cache  # noqa: B019
    def installed(self) -> tuple[Installed[Record], ...]:
        """Returns the plug-ins of the installed distributions, including those that cannot be used."""
        from importlib.metadata import entry_points  # slow to import, and most servers need only built-in plug-ins

        return tuple(self._installed(point) for point in sorted(entry_points(group=self.group)))

    def _installed(self, point: Any) -> Installed[Record]:
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"
        where = f"the plug-in '{point.name}' of {distribution}"
        try:
            record = point.load()
        except Exception as error:
            return Installed(point.name, distribution, None, f"{where} cannot be imported: {error!r}")
        version = getattr(record, "api_version", API_VERSION)
        if version != API_VERSION:
            problem = (
                f"{where} is for version {version} of the plug-in interface, and this server has version {API_VERSION}:"
                " install a release of one that fits the other"
            )
            return Installed(point.name, distribution, None, problem)
        if not isinstance(record, self._kind):
            problem = f"{where} is a {type(record).__name__}, not a {self._kind.__name__}: correct its entry point"
            return Installed(point.name, distribution, None, problem)
        return Installed(point.name, distribution, record)

    def find(self, name: str, serves: Callable[[Record], bool]) -> Record | None:
        """Returns the first plug-in that `serves` something: a built-in one, or else an installed one.

        `name` is what is sought, such as the name of a backend. Raises InvalidArgument if an installed plug-in with this
        name cannot be used.
        """
        for record in self.built_in():
            if serves(record):
                return record
        for plugin in self.installed():
            if plugin.record is not None and serves(plugin.record):
                return plugin.record
        for plugin in self.installed():
            if plugin.record is None and plugin.name == name:
                raise InvalidArgument(plugin.problem)
        return None

    def all(self) -> tuple[Record, ...]:
        """Returns all plug-ins that can be used, built-in ones first."""
        return self.built_in() + tuple(plugin.record for plugin in self.installed() if plugin.record is not None)


def _records(module: str) -> tuple[Any, ...]:
    try:
        records: tuple[Any, ...] = import_module(module).PLUGINS
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return ()  # the folder was deleted
        raise
    return records
