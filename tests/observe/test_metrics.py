"""The metrics page, parsed as Prometheus does."""

from __future__ import annotations

import urllib.request

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

import backline
from support.server import ServerProcess


def samples(server: ServerProcess) -> dict[tuple[str, str], float]:
    """The values of model add1, by metric (the parser adds _total to counters) and remaining label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    return {
        (
            sample.name.removesuffix("_total"),
            sample.labels.get("le") or sample.labels.get("reason") or "",
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model") == "add1"
    }


def test_requests_are_counted_under_tritons_names_and_in_the_histogram(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        client["add1"](np.zeros((2, 16), np.float32))  # the histogram appears with the first request
        before = samples(server)
        for _ in range(5):
            client["add1"](np.zeros((2, 16), np.float32))
    after = samples(server)

    def grown(name: str, label: str = "") -> float:
        return after[name, label] - before[name, label]

    assert grown("nv_inference_request_success") == 5
    assert grown("nv_inference_count") == 10
    assert grown("nv_inference_exec_count") == 5
    assert grown("nv_inference_request_duration_us") >= grown("nv_inference_compute_infer_duration_us") >= 0
    assert grown("backline_request_duration_seconds_count") == 5
    assert grown("backline_request_duration_seconds_bucket", "+Inf") == 5
    assert after["nv_inference_pending_request_count", ""] == 0
    assert after["backline_model_ready", ""] == 1


def test_help_lines_use_the_names_of_the_samples(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()

    assert "# TYPE nv_inference_count counter\n" in text
    assert "nv_inference_count_total" not in text
