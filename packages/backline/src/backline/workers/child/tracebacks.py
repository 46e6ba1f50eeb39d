"""Describes exceptions raised by a model's code: one line for the client, the whole traceback for the log."""

from __future__ import annotations

import linecache
import os
import traceback
from pathlib import Path

from backline_client.values.errors import BacklineError

_LONGEST = 500
_LONGEST_TRITON = 2000


def reason(error: BaseException, folder: str) -> str:
    """Describes an exception and the line of the model that raised it: "ValueError: too loud (model.py, line
    12, in predict)".
    """
    if isinstance(error, BacklineError):
        return error.message
    said = " ".join(str(error).split())
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + "..."
    if isinstance(error, SystemExit):
        text = f"the model called sys.exit({'' if error.code is None else error.code!r})"
    elif isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}, line {error.lineno})"
    else:
        text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _inside(frame.filename, folder)]
    if frames:
        last = frames[-1]
        text = f"{text} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
    if isinstance(error, ModuleNotFoundError):
        text += "; list the packages that the model imports in a requirements.txt in its folder"
    return text


def details(error: BaseException) -> str:
    """Returns the whole traceback of an exception."""
    linecache.checkcache()
    return "".join(traceback.format_exception(error)).rstrip()


def triton_text(error: BaseException, folder: str) -> str:
    """Describes the exception in Triton's format, with only the stack frames in the model's files, innermost
    first.

    For example, the lines are "ValueError: too loud", an empty line, "At:" and, for each frame, a line such
    as "  1/model.py(12): execute".
    """
    said = str(error)
    if len(said) > _LONGEST_TRITON:
        said = said[:_LONGEST_TRITON] + "..."
    text = f"{type(error).__name__}: {said}"
    if isinstance(error, SyntaxError) and error.filename:
        text = (
            f"{type(error).__name__}: {error.msg} ({os.path.basename(error.filename)}, line {error.lineno})"
        )
    root = os.path.realpath(folder) + os.sep
    frames = [
        f"  {os.path.realpath(frame.filename).removeprefix(root)}({frame.lineno}): {frame.name}\n"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
        if os.path.realpath(frame.filename).startswith(root)
    ]
    return f"{text}\n\nAt:\n{''.join(frames)}" if frames else text


def _inside(filename: str, folder: str) -> bool:
    return os.path.realpath(filename).startswith(os.path.realpath(folder) + os.sep)
