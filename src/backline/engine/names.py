"""The rule for names of models, versions and labels, and for paths of files that a load brings along.

Such a name becomes a folder, a segment of URLs and a label of metrics. Whatever comes from outside is checked here before it is any of
these: requests in `Engine.find`, in every change of a model, and in `Overrides`; repositories in their scan.
"""

from __future__ import annotations

from typing import Final

from backline.engine.errors import InvalidArgument

#: In UTF-8; file systems take no longer name.
LONGEST_NAME: Final = 255
#: Folders that file systems and tools create anywhere; scans of repositories ignore them.
IGNORED_FOLDERS: Final = frozenset(
    {"lost+found", "__pycache__", "@eaDir", "System Volume Information", "$RECYCLE.BIN"}
)
#: The one file that begins with a dot and belongs to a model: the version of Python that it runs on.
PYTHON_VERSION: Final = ".python-version"
#: Separators of paths, and what has a meaning in URLs or would have to be escaped there.
_REFUSED_CHARACTERS: Final = frozenset('/\\?#%"<>')


def fault_in_name(name: str) -> str:
    """What is wrong with a name, to follow "the name of the model"; empty for a good one."""
    odd = sorted({c for c in name if c in _REFUSED_CHARACTERS or not c.isprintable()})
    if odd:
        return f"has {', '.join(map(repr, odd[:8]))}"
    if name != name.strip():
        return "has a space at its start or end"
    if len(name.encode()) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    if not name:
        return "is empty"
    if name in {".", ".."}:
        return f"is '{name}'"
    if name.startswith("."):
        return "begins with a dot, as hidden files do"
    if name in IGNORED_FOLDERS:
        return f"is '{name}', a folder that no repository is searched for models in"
    return ""


def check_name(what: str, name: str) -> None:
    """Raises InvalidArgument for a name that no model, version or label (`what`) can have."""
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} {fault}")


def check_file_path(path: str) -> None:
    """A path below a model's folder, as a load names its files. Raises InvalidArgument for one that might lead out of it.

    Absolute paths and those with empty segments fail too, as an empty name is none.
    """
    *folders, file = path.split("/")
    if any(map(fault_in_name, folders)) or (fault_in_name(file) and file != PYTHON_VERSION):
        raise InvalidArgument(
            f"load parameter {'file:' + path[:256]!r} names no file inside the model's folder,"
            " expected for example 'file:1/model.onnx'"
        )
