"""Determines from the files of a Python model whether its code may complete the configuration.

A class of Triton's Python backend may have `auto_complete_config`, which adds inputs, outputs and their
datatypes and dims. The file is only read as text here: a worker process runs it.
"""

from __future__ import annotations

import re

from backline.engine.errors import BacklineError
from backline.repository.listing import Listing

#: A class that inherits from no other class.
_PLAIN_CLASS = re.compile(rb"^class TritonPythonModel\s*(\(\s*(object\s*)?\))?:", re.MULTILINE)


def code_may_complete(text: bytes) -> bool:
    """Returns whether the class in a model.py may have `auto_complete_config`. Returns False only if the text
    proves that it does not.
    """
    if b"auto_complete_config" in text:
        return True
    elsewhere = b"TritonPythonModel" in text or b"import *" in text
    return elsewhere and _PLAIN_CLASS.search(text) is None


def may_be_completed(backend: str, platform: str, listing: Listing) -> bool:
    """Returns whether the code of the model in the folder `listing` may complete the configuration."""
    if (backend or platform) and backend != "python":
        return False
    files = [path for path in listing.files if path.endswith("/model.py")]
    try:
        return any(code_may_complete(listing.read(path)) for path in files)
    except BacklineError:
        return True  # the load reports that the file cannot be read
