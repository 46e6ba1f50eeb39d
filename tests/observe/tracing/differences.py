"""Where this server's responses differ from Triton 2.51, and why."""

from __future__ import annotations

from typing import Any

_RANGE = "value is out of range [ 0, 4294967295 ], got: "
_UNKNOWN = (
    "unknown trace setting 'trace_color', expected one of trace_level, trace_rate, trace_count, log_frequency"
)
_MODE = "the trace mode cannot change while the server runs: start it with --trace-config mode=..."
_BODY = (
    "the body is not a JSON object of trace settings, each a string, a list of strings, or null for the "
    "global value: "
)
_NO_LEVEL = "'trace_level' is empty: give OFF, TIMESTAMPS or TENSORS, or null for the global setting"


def _both(message: str, status: str = "400", code: str = "INVALID_ARGUMENT") -> dict[str, Any]:
    return {
        "http": {"error": message, "status": status},
        "grpc": {"error": message, "status": f"StatusCode.{code}"},
    }


_TENSORS = [
    {
        "activity": "TENSOR_QUEUE_INPUT",
        "name": "IN",
        "data": "0.1,0.1,0.1,0.1",
        "shape": "1,4",
        "dtype": "FP32",
    },
    {
        "activity": "TENSOR_BACKEND_OUTPUT",
        "name": "OUT",
        "data": "1.1,1.1,1.1,1.1",
        "shape": "1,4",
        "dtype": "FP32",
    },
]
#: By case: this server's response, and the reason.
DIFFERENCES: dict[str, tuple[Any, str]] = {
    "unknown": (_both(_UNKNOWN), "Triton ignores unknown settings"),
    "mode": (_both(_MODE, "501", "UNIMPLEMENTED"), "Triton ignores it"),
    "no level": (
        _both("unknown trace level 'NOPE', expected OFF, TIMESTAMPS or TENSORS"),
        "Triton ignores unknown levels",
    ),
    "levels without any": ([400, {"error": _NO_LEVEL}], "Triton changes nothing and responds 200"),
    "negative rate": (_both(f"Unable to parse 'trace_rate', {_RANGE}-1"), "Triton takes -1 for 4294967295"),
    "broken rate": (_both("Unable to parse 'trace_rate', got: 1.5"), "Triton reads as far as it can"),
    "negative count": (
        _both("Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
        "over HTTP, Triton omits a space",
    ),
    "rate as a number": (
        [400, {"error": f"{_BODY}Expected `str | array | null`, got `int` - at `$[...]`"}],
        "a client's mistake is not a 500",
    ),
    "level as a text": (
        [
            200,
            {
                "trace_level": ["TIMESTAMPS"],
                "trace_rate": "1",
                "trace_count": "-1",
                "log_frequency": "1",
                "trace_file": "FILE",
                "trace_mode": "triton",
            },
        ],
        "one level counts as a list of one, as over gRPC; Triton answers 500",
    ),
    "no json": ([400, {"error": f"{_BODY}Input data was truncated"}], "a client's mistake is not a 500"),
    "no object": (
        [400, {"error": f"{_BODY}Expected `object`, got `array`"}],
        "Triton takes it for an empty object",
    ),
    "trace of tensors": (
        {
            "answers": [None],
            "traces": [
                [{"model_name": "add", "model_version": 1, "parent": 0, "moments": [], "tensors": _TENSORS}]
            ],
        },
        "with the level TENSORS alone Triton does not say whose tensors they are",
    ),
}
