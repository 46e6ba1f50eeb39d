"""`backline tritonserver` answers as recorded from Triton 2.51 by record_triton.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.triton_server import tritonserver

pytest.importorskip("tritonclient")
from dialects.triton_forms.cases import CONFIGURATIONS, METADATA, Ask
from dialects.triton_forms.places import OPTIONS, Places

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_2_51.json").read_text())
#: By case, what a document has in addition to Triton's, as a path and its value, and why.
ADDITIONS: dict[str, tuple[str, Any, str]] = {
    "the configuration of chain": (
        "ensemble_scheduling.max_inflight_requests",
        0,
        "a field that Triton 2.51 does not know yet",
    ),
    "the metadata of choice": (
        "inputs.1.parameters",
        {"optional": True},
        "clients see what they may leave out",
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with Places(tmp_path_factory.mktemp("forms")) as places:
        yield places


@pytest.fixture(scope="module")
def ask(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    log = tmp_path_factory.mktemp("log") / "log"
    with tritonserver(places.first, log, f"--model-repository={places.second}", *OPTIONS) as server:
        server.wait_started()
        yield Ask(server.http_port, server.grpc_port, places.shared_object)


def without(document: Any, path: str) -> Any:
    """Removes the value at a path and returns it."""
    *parents, last = path.split(".")
    for key in parents:
        document = document[int(key) if key.isdecimal() else key]
    return document.pop(last)


@pytest.mark.parametrize("name", [*CONFIGURATIONS, *METADATA])
def test_configurations_and_metadata_are_those_of_triton(ask: Ask, places: Places, name: str) -> None:
    answer = places.hide(ask.run(name))

    if name in ADDITIONS:
        path, value, _ = ADDITIONS[name]
        assert without(answer["said"], path) == value
    assert answer == RECORDED[name]
