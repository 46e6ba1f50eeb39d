"""Records Triton 2.51's responses to cases.py into triton_2_51.json.

Run `python -m observe.tracing.record_triton` in `tests/`. Installs Triton on first use, as the benchmarks do.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from observe.tracing.cases import CASES, Ask, options
from observe.tracing.repository import write_repository

RECORDS = Path(__file__).with_name("triton_2_51.json")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def main() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    from harness.peers.triton import Triton

    recorded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        triton = Triton()
        triton.start_repository(write_repository(Path(folder) / "models"), *options(file))
        ask = Ask(triton.http_port, triton.grpc_port, file)
        try:
            for name, case in CASES.items():
                ask.reset()
                recorded[name] = case(ask)
                print(name, "->", str(recorded[name])[:200], flush=True)
        finally:
            ask.close()
            if triton.process is not None:
                triton.process.end()
    RECORDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
