"""Stock HTTP/2 clients."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wire.http2.served import Served


def run(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_gets(served: Served) -> None:
    assert (
        run("curl", "-sS", "--http2-prior-knowledge", f"http://127.0.0.1:{served.port}/") == "hello world\n"
    )


def test_curl_posts_a_large_body(served: Served, tmp_path: Path) -> None:
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(bytes(range(256)) * 80_000)
    run(
        "curl",
        "-sS",
        "--http2-prior-knowledge",
        "--data-binary",
        f"@{sent}",
        "-o",
        str(received),
        f"http://127.0.0.1:{served.port}/",
    )
    assert received.read_bytes() == sent.read_bytes()


def test_curl_decompresses_a_response(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}/large?100000"
    assert len(run("curl", "-sS", "--compressed", "--http2-prior-knowledge", url)) == 100_000


def test_nghttp_gets_several_responses(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}/"
    assert run("nghttp", "-m", "5", url).count("hello world") == 5


def test_h2load_gets_all_responses(served: Served) -> None:
    out = run("h2load", "-n", "3000", "-c", "3", "-m", "20", f"http://127.0.0.1:{served.port}/")
    assert re.search(r"3000 succeeded, 0 failed, 0 errored, 0 timeout", out), out
