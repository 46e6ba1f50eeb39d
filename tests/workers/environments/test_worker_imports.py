"""What the code of a worker needs in an environment that is not the server's."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTED = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
of_others = {name.partition(".")[0] for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", None) or "")}
print(*sorted(of_others - {"backline"} - set(sys.stdlib_module_names)))
"""


@pytest.mark.parametrize("kind", ["python_model", "triton.model"])
def test_a_worker_imports_nothing_but_what_every_environment_has(kind: str) -> None:
    modules = ["backline.workers.process.child", f"backline.workers.process.{kind}", "backline.inworker"]
    run = subprocess.run([sys.executable, "-S", "-c", IMPORTED, *modules], capture_output=True, text=True, check=False, env=_path())

    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) <= {"numpy", "msgspec"}


def _path() -> dict[str, str]:
    """The path of this process, without what files in site-packages import at every start."""
    return {"PYTHONPATH": ":".join(filter(None, sys.path))}
