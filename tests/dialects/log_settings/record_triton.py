"""Records the responses of Triton 2.51 to cases.py in triton_2_51.json: `python record_triton.py`.

Uses the server of the benchmarks, which it installs on first use.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RECORDS = HERE / "triton_2_51.json"
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "benchmarks")]
from harness.peers.triton import Triton  # noqa: E402

from dialects.log_settings.cases import CASES, Ask  # noqa: E402


def main() -> None:
    triton = Triton()
    with tempfile.TemporaryDirectory() as repository:
        try:
            triton.start_repository(Path(repository))
            ask = Ask(triton.http_port, triton.grpc_port)
            recorded = {name: ask.run(name) for name in CASES}
        finally:
            if triton.process is not None:
                triton.process.end()
    RECORDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
