"""What a model's exception is for those who wait: Triton's form, with the lines of the model's own files only."""

from __future__ import annotations

import os
import traceback

_LONGEST = 2000


def failure(error: BaseException, folder: str) -> str:
    """The exception, and where in the model's folder it was raised, innermost first.

    "ValueError: too loud", an empty line, "At:", and for each frame "  1/model.py(12): execute".
    """
    said = str(error)
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + "..."
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
