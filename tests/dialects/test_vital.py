"""Health checks and metrics are answered under any load."""

from __future__ import annotations

import pytest

from backline.dialects.application import build_application
from backline.engine.engine import Engine

VITAL = [
    b"/v2/health/live",
    b"/v2/health/ready",
    b"/v2/models/add1/ready",
    b"/v2/models/add1/versions/1/ready",
    b"/metrics",
    b"/grpc.health.v1.Health/Check",
    b"/inference.GRPCInferenceService/ServerLive",
    b"/inference.GRPCInferenceService/ServerReady",
    b"/inference.GRPCInferenceService/ModelReady",
]
OTHERS = [
    b"/v2/models/add1/infer",
    b"/v2/models/stats",
    b"/",
    b"/grpc.health.v1.Health/Watch",
    b"/inference.GRPCInferenceService/ModelInfer",
]


@pytest.mark.parametrize("path", VITAL)
def test_probes_and_metrics_are_vital(path: bytes) -> None:
    assert build_application(Engine()).is_vital(path)


@pytest.mark.parametrize("path", OTHERS)
def test_other_requests_are_not_vital(path: bytes) -> None:
    assert not build_application(Engine()).is_vital(path)


def test_vital_calls_are_methods_that_are_served() -> None:
    served = build_application(Engine()).rpc
    assert all(path in served for path in VITAL if b"." in path)
