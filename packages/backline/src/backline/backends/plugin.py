"""The door for backends: the record of one, and the built-in ones."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import field

from backline.doors import Door, Plugin
from backline.engine.config.model_config import ModelFormat

if TYPE_CHECKING:
    from backline.backends.backend import Backend

#: The backends that were created, by the target of their record.
_created: dict[str, Backend] = {}


class BackendPlugin(Plugin, frozen=True, kw_only=True):
    """A backend: its name and Triton platform in configurations, the formats that it loads, and the class (a
    Backend) that implements it.
    """

    platform: str = ""
    formats: tuple[ModelFormat, ...] = ()
    #: Whether the models run in worker processes, whose environments may have other packages.
    hosted: bool = False
    #: The name of the runtime that loads the models in the server's process, and the package from which the
    #: version of the runtime is read. Both are empty for a backend that reads no files in the server's
    #: process.
    runtime: str = ""
    package: str = ""
    #: The modules of the runtime that a process may import before it forks for trials, or functions
    #: ("module:function") that import the runtime with settings.
    imports: tuple[str, ...] = ()
    #: Further modules and functions to import before a fork, for files with a given suffix.
    imports_by_suffix: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The function ("module:function") that returns the extras that the model at a path needs in addition to
    #: `extra`; empty if there are none.
    further_extras: str = ""
    #: The function ("module:function") that returns the name of the backend that loads the model at a path;
    #: empty if this backend loads all of its models.
    loaded_by: str = ""

    @property
    def serves(self) -> tuple[str, ...]:
        return tuple(
            text
            for format in self.formats
            for text in (*format.filenames, *(f"*{suffix}" for suffix in format.suffixes))
        )

    def imports_for(self, path: Path) -> tuple[str, ...]:
        """Returns the modules and functions (see `imports`) for a process that forks for a trial of `path`.
        Only the file name is considered.
        """
        return self.imports + self.imports_by_suffix.get(path.suffix.lower(), ())

    def extras(self, path: Path) -> set[str]:
        """Returns the extras that the model at `path` needs."""
        module, _, function = self.further_extras.partition(":")
        further = getattr(import_module(module), function)(path) if module and path.exists() else set()
        return {self.extra, *further} - {""}

    def loader(self, path: Path) -> str:
        """Returns the name of the backend that loads the model at `path`; see `loaded_by`."""
        module, _, function = self.loaded_by.partition(":")
        name: str = getattr(import_module(module), function)(path) if module else self.name
        return name

    def backend(self) -> Backend:
        """Returns the backend, which is created on first use. Imports its module."""
        found = _created.get(self.target)
        if found is None:
            found = _created[self.target] = self.load()()
        return found


#: The built-in backends, in the order in which their formats are looked for in a folder.
BACKENDS: Final = Door(
    "backline.backends",
    BackendPlugin,
    (
        "backline.plugins.runtimes.onnx",
        "backline.plugins.runtimes.pytorch",
        "backline.plugins.runtimes.mlflow",
        "backline.plugins.runtimes.tensorflow",
        "backline.plugins.runtimes.litert",
        "backline.plugins.runtimes.openvino",
        "backline.plugins.runtimes.jax",
        "backline.plugins.runtimes.trees",
        "backline.plugins.runtimes.sklearn",
        "backline.backends.python_plugin",
        "backline.plugins.runtimes.torchserve",
        "backline.plugins.fleet",
        "backline.plugins.runtimes.text",
        "backline.plugins.runtimes.reference",
    ),
)
