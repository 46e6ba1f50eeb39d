"""The doors through which plug-ins arrive: backends, dialects, repository schemes and commands.

A plug-in is a record that says what it serves and where its code is. Built-in plug-ins are named in a static
table, because a scan of the installed distributions takes 40 ms. The distributions are scanned only for what
no built-in plug-in serves, and to list all plug-ins. A distribution offers its records as entry points of the
door's group:

    [project.entry-points."backline.backends"]
    toy = "toy_backend:PLUGIN"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from backline_client.values.errors import InvalidArgument

#: The version of the interfaces that plug-ins implement. A plug-in for another version is refused.
API_VERSION: Final = 1


class Plugin(Struct, frozen=True, kw_only=True):
    """What every plug-in says of itself.

    `target` is where the code is, as "module:attribute"; it is imported on first use. `extra` is the extra of
    Backline, or the distribution, that installs what the plug-in needs, and `page` its page of the
    documentation.
    """

    name: str
    target: str
    summary: str = ""
    extra: str = ""
    page: str = ""
    #: The version of the interface that the code was written for. Only built-in plug-ins leave it out.
    api_version: int = 0

    @property
    def serves(self) -> tuple[str, ...]:
        """What the plug-in serves, for lists of plug-ins, such as "*.onnx" or "GET /v1/models"."""
        return ()

    def load(self) -> Any:
        """Imports the plug-in's code. Raises InvalidArgument if it cannot be imported."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            advice = f"; install what it needs: {self.extra}" if self.extra else ""
            raise InvalidArgument(
                f"the plug-in '{self.name}' cannot be imported from '{self.target}': {error}{advice}"
            ) from error


Record = TypeVar("Record", bound=Plugin)


class Installed(Struct, Generic[Record], frozen=True):
    """A plug-in of an installed distribution. `record` is None if it cannot be used; `problem` says why."""

    name: str
    distribution: str
    record: Record | None
    problem: str = ""


class Door(Generic[Record]):
    """One kind of plug-in. `group` is its group of entry points.

    `modules` are those of the built-in plug-ins, each of which has its records in a tuple PLUGINS. A module
    whose folder was deleted offers nothing.
    """

    def __init__(self, group: str, kind: type[Record], modules: tuple[str, ...]) -> None:
        self.group = group
        self._kind = kind
        self._modules = modules

    @cached_property
    def built_in(self) -> tuple[Record, ...]:
        """The records of the built-in plug-ins, in the order of the table."""
        return tuple(record for module in self._modules for record in _records(module))

    @cached_property
    def installed(self) -> tuple[Installed[Record], ...]:
        """The plug-ins of the installed distributions, including those that cannot be used."""
        from importlib.metadata import entry_points  # slow to import

        found = sorted(entry_points(group=self.group), key=lambda point: point.name)
        return tuple(self._installed(point) for point in found)

    def _installed(self, point: Any) -> Installed[Record]:
        source = point.dist
        distribution = f"{source.name} {source.version}" if source is not None else "an unknown distribution"
        where = f"the plug-in '{point.name}' of {distribution}"
        try:
            record = point.load()
        except Exception as error:
            return Installed(point.name, distribution, None, f"{where} cannot be imported: {error!r}")
        version = getattr(record, "api_version", API_VERSION)
        if version == 0:
            problem = (
                f"{where} does not say for which version of the plug-in interface it is: set api_version in"
                f" its record, to {API_VERSION} for this server"
            )
        elif version != API_VERSION:
            problem = (
                f"{where} is for version {version} of the plug-in interface, but this server has version"
                f" {API_VERSION}: install releases of both that fit"
            )
        elif not isinstance(record, self._kind):
            problem = (
                f"{where} is a {type(record).__name__}, but its entry point must name a {self._kind.__name__}"
            )
        else:
            return Installed(point.name, distribution, record)
        return Installed(point.name, distribution, None, problem)

    @property
    def further(self) -> tuple[Record, ...]:
        """The installed plug-ins that can be used."""
        return tuple(one.record for one in self.installed if one.record is not None)

    @property
    def all(self) -> tuple[Record, ...]:
        """All plug-ins that can be used, built-in ones first."""
        return self.built_in + self.further

    def find(self, name: str, serves: Callable[[Record], bool]) -> Record | None:
        """Returns the first plug-in that `serves` what is sought: a built-in one, or else an installed one.

        Raises InvalidArgument if there is only an installed plug-in with this `name` that cannot be used.
        """
        for record in self.built_in:
            if serves(record):
                return record
        for record in self.further:
            if serves(record):
                return record
        for one in self.installed:
            if one.problem and one.name == name:
                raise InvalidArgument(one.problem)
        return None


def _records(module: str) -> tuple[Any, ...]:
    try:
        records: tuple[Any, ...] = import_module(module).PLUGINS
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return ()
        raise
    return records
