"""Health checks and metrics are answered under any load."""

from __future__ import annotations

import pytest

from backline.dialects.application import build_application
from backline.engine.engine import Engine

CALLS = [
    b"/grpc.health.v1.Health/Check",
    b"/inference.GRPCInferenceService/ServerLive",
    b"/inference.GRPCInferenceService/ServerReady",
    b"/inference.GRPCInferenceService/ModelReady",
]
PAGES = [
    b"/v2/health/live",
    b"/v2/health/ready",
    b"/v2/models/add1/ready",
    b"/v2/models/add1/versions/1/ready",
    b"/metrics",
]
VITAL = [(b"POST", path) for path in CALLS] + [
    (method, path) for method in (b"GET", b"HEAD") for path in PAGES
]
OTHERS = [
    (b"POST", b"/v2/models/add1/infer"),
    (b"GET", b"/v2/models/stats"),
    (b"GET", b"/"),
    (b"POST", b"/grpc.health.v1.Health/Watch"),
    (b"POST", b"/inference.GRPCInferenceService/ModelInfer"),
    *((b"GET", path) for path in CALLS),
    *((method, path) for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS") for path in PAGES),
    # paths that no route matches
    (b"GET", b"/v2/models//ready"),
    (b"GET", b"/v2/models/ready"),
    (b"GET", b"/v2/models/add1/infer/ready"),
    (b"GET", b"/v2/models/add1/versions/ready"),
    (b"GET", b"/v2/models/add1/versions/1/2/ready"),
    (b"GET", b"/v2/models/add1/ready\n"),
    (b"GET", b"/metrics/ready"),
]


@pytest.mark.parametrize(("method", "path"), VITAL)
def test_probes_and_metrics_are_vital(method: bytes, path: bytes) -> None:
    assert build_application(Engine()).is_vital(method, path)


@pytest.mark.parametrize(("method", "path"), OTHERS)
def test_other_requests_are_not_vital(method: bytes, path: bytes) -> None:
    assert not build_application(Engine()).is_vital(method, path)


def test_vital_calls_are_methods_that_are_served() -> None:
    served = build_application(Engine()).rpc
    assert all(path in served for path in CALLS)
