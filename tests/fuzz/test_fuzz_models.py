"""How the answers to loads of damaged files are judged; tests/fuzz/fuzz_models.py loads such files."""

from __future__ import annotations

import json

import pytest

from fuzz.fuzz_models import Answer, outcome_of_load, outcome_of_request, traceback_in, zeros

FAILED = "load failed for model 'm': version 1 is at UNAVAILABLE state: "


def error(status: int, text: str) -> Answer:
    return Answer(status, json.dumps({"error": text}))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("'/models/m/1/model.onnx' is empty;\n", "refused"),
        ("'/m/model.pt' cannot be loaded by PyTorch 2.15: RuntimeError: no constants;\n", "refused"),
        ("there is not enough memory to load it;\n", "refused"),
        ("LightGBM 4.7.0 crashed while loading '/m/model.txt' (SIGSEGV);\n", "crashed"),
        (
            "JAX 0.10.2 did not finish running '/m/model.jax' within 20 s, so its process was killed",
            "did not end",
        ),
        ("CatBoost used more than 1 GiB of memory while loading '/m/model.cbm'", "took all memory"),
        ("KeyError: 'inputs';\n", "finding"),
        ("error: unpack requires a buffer of 4 bytes;\n", "finding"),
    ],
)
def test_a_failed_load_is_judged_by_its_reason(reason: str, kind: str) -> None:
    assert outcome_of_load(error(400, FAILED + reason)).kind == kind


@pytest.mark.parametrize(
    "answer",
    [error(500, f"{FAILED}it is empty"), error(400, ""), Answer(400, "<html>"), Answer(0, "timed out")],
)
def test_an_answer_that_no_client_can_use_is_a_finding(answer: Answer) -> None:
    assert outcome_of_load(answer).kind == "finding"
    assert outcome_of_request(answer).kind == "finding"


def test_a_request_may_fail_with_the_reason_of_the_runtime() -> None:
    assert outcome_of_request(error(500, "model 'm' failed: no kernel")).kind == "failing"
    assert outcome_of_request(error(400, "model 'm' refuses the input: its shape")).kind == "served"


def test_a_traceback_counts_unless_it_leads_into_the_handler_of_an_archive() -> None:
    begins = "2026-01-01 WARNING backline.workers: model 'm': Traceback (most recent call last):\n"
    in_server = f"{begins}    File 'worker.py', line 1\n  KeyError: 'x'\n"
    in_handler = (
        f"{begins}    File 'handlers.py', line 2\n      module = import_module(module_name)\n  NameError\n"
    )
    plain = "2026-01-01 INFO backline: loaded\n"

    assert traceback_in(plain + in_handler + plain) == ""
    assert traceback_in(in_handler + in_server + plain) == in_server + plain


def test_a_request_that_fits_the_metadata_is_made() -> None:
    described = [
        {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "b", "datatype": "BYTES", "shape": [0]},
    ]

    assert zeros({"inputs": described}) == {
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]},
            {"name": "b", "datatype": "BYTES", "shape": [0], "data": []},
        ]
    }
    assert zeros({"inputs": [{"name": "a", "datatype": "INT8", "shape": [1 << 40]}]}) is None
