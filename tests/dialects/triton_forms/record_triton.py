"""Records the answers of Triton 2.51 to cases.py in triton_2_51.json: `python record_triton.py`.

Uses the server of the benchmarks, which it installs on first use.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDS = HERE / "triton_2_51.json"
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "benchmarks")]
from harness.peers.triton import Triton  # noqa: E402

from dialects.triton_forms.cases import CASES, Ask  # noqa: E402
from dialects.triton_forms.places import OPTIONS, Places  # noqa: E402


def main() -> None:
    """Answers are kept for the cases of which Triton crashes, and it is started again for the next one."""
    recorded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Places(Path(folder)) as places:
        while left := [name for name in CASES if name not in recorded]:
            triton = Triton()
            try:
                triton.start_repository(places.first, f"--model-repository={places.second}", *OPTIONS)
                ask = Ask(triton.http_port, triton.grpc_port, places.shared_object)
                for name in left:
                    try:
                        recorded[name] = places.hide(ask.run(name))
                    except (OSError, http.client.HTTPException):
                        recorded[name] = {"ended": "it crashed"}
                        break
                    if (
                        "Connection reset" in recorded[name]["said"]
                        or "Socket closed" in recorded[name]["said"]
                    ):
                        recorded[name] = {"ended": "it crashed"}
                        break
            finally:
                if triton.process is not None:
                    triton.process.end()
    RECORDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
