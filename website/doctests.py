"""Turns the examples in docstrings, which start with >>>, into code blocks of Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"(?:^ *>>> .*\n?(?:^ *(?:\.\.\. |    ).*\n?)*)+", re.MULTILINE)
_PROMPT = re.compile(r"^ *(?:>>> |\.\.\. )", re.MULTILINE)


class Doctests(Extension):
    """Rewrites the docstring of every object as it is read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The docstring, with each example as a fenced block without prompts."""
    return _EXAMPLE.sub(lambda found: f"```python\n{_PROMPT.sub('', found[0]).rstrip()}\n```\n", text)
