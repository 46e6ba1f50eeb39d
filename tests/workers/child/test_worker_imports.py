"""The packages that a worker needs in a model's environment."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Imports modules as if only NumPy and msgspec were installed.
IMPORT = """
import sys
from importlib import import_module

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"backline", "backline_client", "numpy", "msgspec", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
for name in sys.argv[1:]:
    import_module(name)
"""


@pytest.mark.parametrize("kind", ["python_model", "triton.model"])
def test_a_worker_needs_nothing_but_numpy_and_msgspec(kind: str) -> None:
    modules = [
        "backline.workers.child.worker",
        f"backline.workers.child.{kind}",
        "backline.workers.child.models",
    ]

    run = subprocess.run(
        [sys.executable, "-c", IMPORT, *modules], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
