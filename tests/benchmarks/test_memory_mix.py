"""The benchmark of models that need several times the memory budget, for a few seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory_mix.py"


def test_models_that_need_several_budgets_answer_within_the_budget(tmp_path: Path) -> None:
    options = {
        "--kinds": "onnx,python,python_made",
        "--models": "12",
        "--mib": "48",
        "--times": "2.5",  # room for the runtimes and the largest model at its load
        "--seconds": "10",
        "--clients": "2",
        "--reload-count": "3",
        "--max-ms": "10000",  # this test makes no claim about time
        "--folder": str(tmp_path / "folder"),
        "--json": str(tmp_path / "result.json"),
    }
    arguments = [text for option in options.items() for text in option]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    claims = [line for line in done.stdout.splitlines() if line.startswith(("holds", "BROKEN"))]
    assert len(claims) == 4, done.stdout + done.stderr
    assert not [claim for claim in claims if claim.startswith("BROKEN")], done.stdout
