"""The runner: servers that hang or die, and models that are missing or have other names."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from oip_conformance.areas import ROWS
from oip_conformance.cli import main
from oip_conformance.http1 import HttpClient
from oip_conformance.row import NoAnswer, Verdict
from oip_conformance.runner import PROFILES, run
from oip_conformance.target import Target
from reference import reference_server

LIVE = "GET /v2/health/live"


@contextlib.contextmanager
def proxy(to: str, hangs: Callable[[str, int], bool]) -> Iterator[str]:
    """A proxy that never answers a request whose first line, and number among all, `hangs` says so of."""
    host, port = to.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    seen = 0

    def serve(client: socket.socket, number: int) -> None:
        with client, contextlib.suppress(OSError):
            head = client.recv(65536)
            if hangs(head.split(b"\r\n")[0].decode(errors="replace"), number):
                client.settimeout(30)
                client.recv(1)
                return
            with socket.create_connection((host, int(port))) as server:
                server.sendall(head)
                threading.Thread(target=_copy, args=(client, server), daemon=True).start()
                _copy(server, client)

    def accept() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                seen += 1
                threading.Thread(target=serve, args=(client, seen), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


REQUIRED = [row for row in ROWS.values() if row.profile == "required"]


def test_request_without_an_answer_costs_its_row_and_not_the_run() -> None:
    with reference_server() as (url, _), proxy(url, lambda line, _: "no/such/route" in line) as hanging:
        outcome = run(Target(HttpClient(hanging)), REQUIRED, ["required"], row_seconds=1.5)
    failed = [result.row.id for result in outcome.results if result.verdict is Verdict.FAILED]
    assert failed == ["metadata.unknown-route"]
    assert outcome.stopped == ""


def test_server_that_stops_answering_ends_the_run() -> None:
    started = time.monotonic()
    with reference_server() as (url, _), proxy(url, lambda _, number: number > 120) as hanging:
        outcome = run(Target(HttpClient(hanging)), REQUIRED, ["required"], row_seconds=0.8)
    assert time.monotonic() - started < 30
    assert "no longer answered" in outcome.stopped
    assert len(outcome.results) == len(REQUIRED)
    assert outcome.results[-1].verdict is Verdict.NOT_RUN


def test_run_ends_when_its_time_is_over() -> None:
    with reference_server() as (url, _):
        outcome = run(Target(HttpClient(url)), REQUIRED, ["required"], seconds=0.05)
    assert "seconds were over" in outcome.stopped


def test_server_that_is_not_there_is_an_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert main([f"http://127.0.0.1:{port}"]) == 2
    assert "does not answer" in capsys.readouterr().err
    with pytest.raises(NoAnswer):
        run(Target(HttpClient(f"http://127.0.0.1:{port}")), REQUIRED, ["required"])


def test_rows_without_their_model_are_not_run() -> None:
    with reference_server() as (url, _):
        target = Target(HttpClient(url), names={"sum": "no_such_model"})
        outcome = run(target, [ROWS["infer.ok"], ROWS["infer.nested"]], ["required"])
    assert [(r.verdict, r.note) for r in outcome.results] == [
        (Verdict.NOT_RUN, "the server has no model 'no_such_model'"),
        (Verdict.PASSED, ""),
    ]


def test_model_of_another_name_is_mapped_with_the_names_of_its_tensors() -> None:
    with reference_server() as (url, _):
        target = Target(HttpClient(url), names={"spare": "versioned"})
        assert target.path("spare") == "/v2/models/versioned"
        # The text model, in the place of an identity model, has other names for its tensors.
        target = Target(HttpClient(url), names={"identity_bytes": "text"})
        run(target, [ROWS["infer.unicode"]], ["required"])
    assert target.ports["identity_bytes"] == (["text_input"], ["text_output"])


def test_profiles_need_a_server_that_offers_them() -> None:
    with reference_server() as (url, _):
        outcome = run(Target(HttpClient(url)), list(ROWS.values()), list(PROFILES))
        assert outcome.missing == ["grpc", "stream"]
        assert main([url, "--profile", "grpc", "--quiet"]) == 1
        assert main([url, "--profile", "classification", "--quiet"]) == 0
