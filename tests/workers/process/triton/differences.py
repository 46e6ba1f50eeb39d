"""Where this server answers otherwise than Triton 2.51: by case, what of the answer is another, and why."""

from __future__ import annotations

import copy
from typing import Any

#: What stands at a path, keys and indexes, in place of what Triton has there; () is the whole answer.
Changes = dict[tuple[str | int, ...], Any]

_FINE = {"id": "", "outputs": {"told": ["BYTES", [1], ["fine"]], "number": ["INT32", [1], [7]]}}
_TWICE = "TritonModelException: Unable to send response. Non-decoupled model cannot send more than one response."

DIFFERENCES: dict[str, tuple[Changes, str]] = {
    "function dlpack_from_numpy": (
        {(): ["uint16", [3], [0, 1, 2]]},
        "Triton's process of the model ends with a segmentation fault",
    ),
    "configuration at the server": (
        {
            ("platform",): "python",
            ("parameters", "backline.lane"): {"string_value": "process"},
            ("parameters", "backline.placement"): {"string_value": "in 1 worker process"},
        },
        "this server also says where a model runs, and fills in the platform",
    ),
    "answer error UNKNOWN by http": (
        {(): {"error": "it went wrong", "status": "400"}},
        "Triton's HTTP server does not answer a request that failed with UNKNOWN",
    ),
    "answer error CANCELLED by http": ({("status",): "499"}, "what was cancelled has a status of its own here"),
    "answer sender says twice": (
        {(): [_FINE, {"id": "", "outputs": {"told": ["BYTES", [1], [_TWICE]], "number": ["INT32", [1], [7]]}}]},
        "a model with one response to a request has answered with the first; Triton waits for the final flag for ever",
    ),
    "coroutine raised": (
        {
            ("error",): "Failed to process the request(s) for model 'coroutine_0', message: ValueError: negative\n\nAt:\n"
            "  1/model.py(15): answer\n  1/model.py(9): execute\n"
        },
        "the frame that awaited is told, too",
    ),
}


def expect(name: str, recorded: Any) -> tuple[Any, str]:
    """What this server is to answer where Triton has answered `recorded`, and why it is another answer, if it is."""
    changes, reason = DIFFERENCES.get(name, ({}, ""))
    expected = copy.deepcopy(recorded)
    for path, value in changes.items():
        if not path:
            return value, reason
        place = expected
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return expected, reason
