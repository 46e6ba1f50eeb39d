"""Checks the names of models, versions and labels, and the file paths in load requests; sorts versions.

Names from outside become folders, URL segments and metric labels, so they are checked before any such use.
`Engine.find`, `Overrides` and every change to a model check the names in requests. The scan of a repository
checks the names in the repository.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from backline_client.values.errors import InvalidArgument


@lru_cache(4096)
def version_order(version: str) -> tuple[tuple[tuple[int, int, str], ...], tuple[int, ...]]:
    """Returns a sort key for a version, in which runs of digits are compared as numbers, and sort before runs
    of other characters.

    No two versions have equal keys: if two versions differ only in leading zeros, the version with fewer
    zeros sorts first.
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    # Only ASCII digits count as digits: str.isdigit also accepts "²", which int rejects.
    natural = tuple((0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts)
    return natural, tuple(map(len, parts))


#: The maximum length of a name, in bytes of UTF-8. File systems do not accept longer names.
LONGEST_NAME: Final = 255
#: The names of folders that file systems and tools create in any folder. Scans of repositories ignore such
#: folders.
IGNORED_FOLDERS: Final = frozenset(
    {"lost+found", "__pycache__", "@eaDir", "System Volume Information", "$RECYCLE.BIN"}
)
#: The only hidden file that is part of a model. It says which Python version the model runs on.
PYTHON_VERSION: Final = ".python-version"
#: Path separators, and characters that have a meaning in URLs or would have to be escaped in URLs.
_REFUSED_CHARACTERS: Final = frozenset('/\\?#%"<>')


def fault_in_name(name: str) -> str:
    """Returns what is wrong with a name, worded to follow a text such as "the name of the model"; empty if
    the name is valid.
    """
    too_long = f"is longer than {LONGEST_NAME} bytes"
    if len(name) > LONGEST_NAME:  # checked first, because clients may send names of megabytes
        return too_long
    odd = sorted({c for c in name if c in _REFUSED_CHARACTERS or not c.isprintable()})
    if odd:
        return f"has {', '.join(map(repr, odd[:8]))}"
    if name != name.strip():
        return "has a space at its start or end"
    if len(name.encode()) > LONGEST_NAME:
        return too_long
    if not name:
        return "is empty"
    if name in {".", ".."}:
        return f"is '{name}'"
    if name.startswith("."):
        return "begins with a dot, as hidden files do"
    if name in IGNORED_FOLDERS:
        return f"is '{name}', a folder that repository scans ignore"
    return ""


def check_name(what: str, name: str) -> None:
    """Raises InvalidArgument for a name that no model, version or label can have. `what` says which of these
    the name is for.
    """
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} {fault}")


def check_file_path(path: str) -> None:
    """Checks that a path in a load request names a file below the model's folder.

    Raises InvalidArgument for a path that might name a file outside the folder, such as an absolute path or a
    path with empty segments.
    """
    *folders, file = path.split("/")
    if any(map(fault_in_name, folders)) or (fault_in_name(file) and file != PYTHON_VERSION):
        raise InvalidArgument(
            f"load parameter {'file:' + path[:256]!r} does not name a file inside the model's folder:"
            " expected, for example, 'file:1/model.onnx'"
        )


def printable(text: object) -> str:
    """Returns the text with control characters and undecodable bytes escaped, so that it is safe for
    terminals and logs.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown
    )
