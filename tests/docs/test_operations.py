"""docs/operations.md against the limits, metrics and health of a real server."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from math import prod
from pathlib import Path

import click
import pytest
from msgspec.structs import asdict

from backline.cli import serve
from backline.dialects import input_plan, json_scan
from backline.dialects.bodies import json_text
from backline.dialects.open_inference import repository
from backline.dialects.open_inference.grpc import wire_format
from backline.dialects.open_inference.rest import generate
from backline.lifecycle.labels import labelling
from backline.lifecycle.loading.queueing import DEFAULT_QUEUE_SIZE, QUEUE_SECONDS, SMALLEST_QUEUE
from backline.plugins.dialects.console import service as console
from backline.wire.limits import Limits
from docs.conftest import wait_until_loaded
from docs.pages import code, read, table
from support import models
from support.server import ServerProcess
from support.server import serve as run_server

PAGE = "docs/operations.md"
_UNITS = {"": 1, "s": 1, "KiB": 1024, "KiB/s": 1024, "MiB": 1024 * 1024}


def _number(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * _UNITS[unit]


def test_every_limit_is_listed_with_its_default() -> None:
    listed = {code(row["limit"])[0]: _number(row["default"]) for row in table(PAGE, "limit")}

    assert listed == asdict(Limits())


def test_the_options_of_limits_are_options_of_serve() -> None:
    defaults = {
        name: param.default
        for param in serve.command.params
        if isinstance(param, click.Option)
        for name in param.opts
    }
    limits = Limits()

    for row in table(PAGE, "limit"):
        for option in code(row["option"]):
            assert defaults[option] == getattr(limits, code(row["limit"])[0])


def test_every_limit_with_a_serve_option_names_it() -> None:
    set_by_serve = {param.name for param in serve.command.params} & set(Limits.__struct_fields__)

    assert set_by_serve == {code(row["limit"])[0] for row in table(PAGE, "limit") if row["option"]}


def test_the_bounds_of_requests_are_listed() -> None:
    listed = {code(row["bound"])[0]: row["value"].replace(" KiB", "*1024") for row in table(PAGE, "bound")}

    assert {name: prod(map(int, value.split("*"))) for name, value in listed.items()} == {
        "MAX_KEYS": json_scan.MAX_KEYS,
        "MAX_DOCUMENT": json_scan.MAX_DOCUMENT,
        "MAX_CONFIG": repository.MAX_CONFIG,
        "MAX_RANK": input_plan.MAX_RANK,
        "MAX_FIELDS": wire_format.MAX_FIELDS,
        "MAX_UNKNOWN_FIELDS": wire_format.MAX_UNKNOWN_FIELDS,
        "MAX_PARAMETERS": generate.MAX_PARAMETERS,
        "MOST_WATCHERS": console.MOST_WATCHERS,
        "MOST_LABELS": labelling.MOST_LABELS,
        "MAX_BYTES_ELEMENTS": input_plan.MAX_BYTES_ELEMENTS,
        "MAX_STRINGS": wire_format.MAX_STRINGS,
        "MAX_VARINTS": wire_format.MAX_VARINTS,
        "MAX_JSON": json_text.MAX_JSON,
        "MAX_LISTS": json_text.MAX_LISTS,
    }


def test_the_default_queue_size_is_stated() -> None:
    page = " ".join(read(PAGE).split())
    assert f"in about {QUEUE_SECONDS:g} second," in page
    assert f"but at least {SMALLEST_QUEUE} and at most {DEFAULT_QUEUE_SIZE}" in page


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def caching_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a cache and with summaries, without which some metrics are missing."""
    folder = tmp_path_factory.mktemp("caching")
    models.add1(folder / "models")
    (folder / "models" / "add1" / "config.pbtxt").write_text("response_cache { enable: true }")
    options = ("--cache-config", "local,size=1MiB", "--metrics-config", "summary_latencies=true")
    # The summary of requests is that of models whose responses are not cached.
    models.add1(folder / "models", name="other")
    with run_server(folder / "models", folder / "log", *options) as running:
        yield running


@pytest.mark.parametrize("port", ["http_port", "grpc_port", "metrics_port"])
def test_every_metric_is_listed(caching_server: ServerProcess, port: str) -> None:
    _get(f"{caching_server.url}/v2/models/add1/infer")

    status, text = _get(f"http://127.0.0.1:{getattr(caching_server, port)}/metrics")

    families = {
        name: kind
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)
        if name.startswith(("nv_", "backline_"))
    }
    assert status == 200
    assert {code(row["metric"])[0] for row in table(PAGE, "metric")} == families.keys()


def test_the_failure_reasons_are_listed(server: ServerProcess) -> None:
    text = _get(f"{server.url}/metrics")[1]
    for row in table(PAGE, "metric"):
        (metric, *_) = code(row["metric"])
        reasons = set(re.findall(rf'^{metric}{{.*reason="(\w+)"', text, re.MULTILINE))
        if reasons:
            listed = re.findall(r"[A-Z]{3,}", row["what it is"]) or code(row["what it is"])[1:]
            assert reasons == set(listed)


def test_readiness_fails_while_a_model_is_broken(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    broken = tmp_path / "models" / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")

    with run_server(tmp_path / "models", tmp_path / "server.log", ready=False) as server:
        wait_until_loaded(server)
        answers = {
            path: _get(f"{server.url}/v2/{path}")[0]
            for path in ("health/live", "health/ready", "models/add1/ready", "models/broken/ready")
        }
        reason = _get(f"{server.url}/v2/models/broken/ready")[1]

    assert answers == {
        "health/live": 200,
        "health/ready": 503,
        "models/add1/ready": 200,
        "models/broken/ready": 503,
    }
    assert "is not an ONNX model" in reason


def test_health_of_an_unknown_model_is_404(server: ServerProcess) -> None:
    assert _get(f"{server.url}/v2/models/nobody/ready")[0] == 404
