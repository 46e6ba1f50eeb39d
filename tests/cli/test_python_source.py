"""`config validate` and `doctor` read the files of Python models without running them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest

from support.repositories import put

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]
FAULTS = {
    "a syntax error": ("def predict(x: int:", "model.py:1: SyntaxError"),
    "an input without a type hint": (
        "class Model:\n    def predict(self, x) -> int:\n        return x\n",
        "model.py:2: predict: 'x' has no type hint",
    ),
    "a returned value without a type hint": (
        "def predict(x: int):\n    return x\n",
        "model.py:1: predict: the returned value has no type hint",
    ),
    "an import that is missing": (
        "import nothing_there.part\n\ndef predict(x: int) -> int:\n    return x\n",
        "model.py:1: the module 'nothing_there' is not installed; install it, or list the package in",
    ),
}
SOUND = {
    "a function": "import numpy as np\n\ndef _own(x): ...\n\ndef double(x: int) -> int:\n    return 2 * x\n",
    "a class of Triton's": "class TritonPythonModel:\n    def execute(self, requests): ...\n",
    "a file beside it": "import beside\n\ndef predict(x: int) -> int:\n    return x\n",
    "an optional import": (
        "try:\n    import nothing_there\nexcept ImportError: ...\n\n"
        "def predict(x: int) -> int:\n    return x\n"
    ),
    "an inherited method": "from beside import Base\n\nclass Model(Base): ...\n",
    "code with effects": (
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\n"
        "def predict(x: int) -> int:\n    return x\n"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_python_model_is_found(backline: Run, tmp_path: Path, fault: str) -> None:
    source, text = FAULTS[fault]
    put(tmp_path / "models" / "m" / "1" / "model.py", source)

    validated = backline("config", "validate", tmp_path / "models")
    examined = backline("doctor", tmp_path / "models") if fault == "a syntax error" else None

    assert (validated.returncode, text in validated.stdout) == (1, True), validated.stdout
    assert examined is None or "SyntaxError" in examined.stdout


def test_sound_python_models_are_not_run(backline: Run, tmp_path: Path) -> None:
    for number, source in enumerate(SOUND.values()):
        put(tmp_path / "models" / f"m{number}" / "1" / "model.py", source)
        put(tmp_path / "models" / f"m{number}" / "1" / "beside.py", "Base = object")
    put(tmp_path / "models" / "packed" / "1" / "model.py", FAULTS["an import that is missing"][0])
    put(tmp_path / "models" / "packed" / "requirements.txt", "nothing-there")

    done = backline("config", "validate", tmp_path / "models")

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert not list(tmp_path.rglob("ran"))
