"""The door for repositories elsewhere: the record of a kind of remote location, and the built-in kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from msgspec import field

from backline.doors import Door, Plugin
from backline.engine.config.model_config import ModelFormat

if TYPE_CHECKING:
    from backline.repository.remote.cache import ContentCache
    from backline.repository.remote.files import RemoteFiles


class RepositoryPlugin(Plugin, frozen=True, kw_only=True):
    """A kind of remote location, recognised by the scheme of its URL.

    `target` is a function that is called with a location, the known formats of models and the cache of
    contents. It returns the location's RemoteFiles, and reads nothing yet. It raises InvalidArgument if the
    location is not valid, or if a package is missing.
    """

    schemes: tuple[str, ...]
    #: The names that other tools use for a scheme, and that scheme. Only errors show them.
    aliases: Mapping[str, str] = field(default_factory=dict)
    #: Whether the two slashes may be left out, as in hf:owner/repo.
    slashless: bool = False
    #: Whether the repository may be the only folder at the location, as in many archives.
    nested: bool = False
    #: The function ("module:function") that is called with a URL and a name, and returns the LabelDocument
    #: with this name below the URL; empty if the locations cannot be written to.
    labels: str = ""

    @property
    def serves(self) -> tuple[str, ...]:
        return tuple(f"{scheme}:" if self.slashless else f"{scheme}://" for scheme in self.schemes)

    def open(self, location: str, formats: Sequence[ModelFormat], contents: ContentCache) -> RemoteFiles:
        """Returns the files at a location. Imports the plug-in's code."""
        files: RemoteFiles = self.load()(location, formats, contents)
        return files

    def open_labels(self, location: str, name: str) -> Any:
        """Returns the LabelDocument `name` below a location. Imports the plug-in's code."""
        module, _, function = self.labels.partition(":")
        return getattr(import_module(module), function)(location, name)


#: The built-in kinds, in the order in which errors name their schemes.
REPOSITORIES: Final = Door(
    "backline.repositories",
    RepositoryPlugin,
    (
        "backline.plugins.repositories.object_store",
        "backline.plugins.repositories.web",
        "backline.plugins.repositories.hugging_face",
    ),
)


def find_scheme(scheme: str) -> RepositoryPlugin | None:
    """Returns the plug-in for a scheme: a built-in one, or else an installed one.

    Raises InvalidArgument if the installed plug-in with this name cannot be used.
    """
    return REPOSITORIES.find(scheme, lambda plugin: scheme in plugin.schemes)
