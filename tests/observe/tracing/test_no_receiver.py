"""Spans without a working receiver: nothing waits."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import models
from support.server import free_ports, serve


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts everything and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def hold() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=hold, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for one in held:
            one.close()


@pytest.mark.parametrize("kind", ["silent", "closed"])
def test_neither_requests_nor_shutdown_wait_for_the_receiver(kind: str, silent: int, tmp_path: Path) -> None:
    port = silent if kind == "silent" else free_ports(1)[0]
    models.add1(tmp_path / "models")
    options = [
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        "rate=1",
        f"opentelemetry,url=http://127.0.0.1:{port}/v1/traces",
    ]
    options += [
        "opentelemetry,bsp_schedule_delay=10",
        "opentelemetry,bsp_max_queue_size=64",
        "opentelemetry,bsp_max_export_batch_size=16",
    ]

    with serve(
        tmp_path / "models", tmp_path / "log", *(text for one in options for text in ("--trace-config", one))
    ) as server:
        body = json.dumps(
            {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [0] * 16}]}
        ).encode()
        took = []
        for _ in range(50):  # 350 spans, with space for 64
            began = time.monotonic()
            urllib.request.urlopen(f"{server.url}/v2/models/add1/infer", data=body, timeout=10).read()
            took.append(time.monotonic() - began)
        began = time.monotonic()
        status = server.stop()
        ended = time.monotonic() - began

    assert status == 0
    assert max(took) < 2, "a request has waited for the receiver"
    assert ended < 8, "the end has waited for the receiver"  # 2 s at most, and what a busy machine needs
    assert server.output.count("\n") < 100, "every lost span was logged"
