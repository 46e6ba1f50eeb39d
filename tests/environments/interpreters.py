"""The Python versions of this machine."""

from __future__ import annotations

import json
import subprocess
import sys

from uv import find_uv_bin


def another_python() -> str:
    """An installed version that workers can run on, other than the one running the tests; empty if there
    is none.
    """
    command = [find_uv_bin(), "python", "list", "--only-installed", "--output-format", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    found = {
        (one["version_parts"]["major"], one["version_parts"]["minor"])
        for one in listed
        if one["implementation"] == "cpython"
    }
    others = sorted(
        version for version in found if (3, 11) <= version <= (3, 14) and version != sys.version_info[:2]
    )
    return "{}.{}".format(*others[-1]) if others else ""
