"""The conformance suite of the Open Inference Protocol, with all of its profiles."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from oip_conformance.cli import main
from oip_conformance.models.writer import write_models
from oip_conformance.runner import PROFILES
from support.triton_server import tritonserver


def test_every_row_of_every_profile_passes(tmp_path: Path) -> None:
    names = write_models(tmp_path / "models", "backline")
    options = ["--model-control-mode=explicit", "--allow-client-shm=true"]
    options += [f"--load-model={name}" for name in names if name != "spare"]
    with tritonserver(tmp_path / "models", tmp_path / "log", *options) as server:
        server.wait_ready()
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = main(
                [
                    f"http://127.0.0.1:{server.http_port}",
                    f"--grpc=127.0.0.1:{server.grpc_port}",
                    f"--profile={','.join(PROFILES)}",
                ]
            )
    assert status == 0, output.getvalue()
    assert " 0 failed (0 MUST, 0 SHOULD)" in output.getvalue()
    assert " 0 not run" in output.getvalue()
