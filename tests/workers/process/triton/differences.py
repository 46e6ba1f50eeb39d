"""Where responses differ from Triton 2.51: by case, the part that differs, and why."""

from __future__ import annotations

import copy
from typing import Any

#: By path (keys and indexes), the value that replaces Triton's; () is the whole response.
Changes = dict[tuple[str | int, ...], Any]

_FINE = {"id": "", "outputs": {"told": ["BYTES", [1], ["fine"]], "number": ["INT32", [1], [7]]}}
_CODE = "the error has the code of the called model's error; Triton's is always INTERNAL"
_CODE_OF_REASON = "the error has the code of the reason, and says what is expected"
_WHY = "after Triton's text, the error says why the model cannot be called; its code is that of the reason"
_CYCLE = "a cycle of calls is refused: it would deadlock with as many requests as there are instances"
_TWICE = (
    "TritonModelException: Unable to send response. Non-decoupled model cannot send more than one response."
)

DIFFERENCES: dict[str, tuple[Changes, str]] = {
    "function dlpack_from_numpy": (
        {(): ["uint16", [3], [0, 1, 2]]},
        "the model's process crashes in Triton with a segmentation fault",
    ),
    "answer error UNKNOWN by http": (
        {(): {"error": "it went wrong", "status": "400"}},
        "Triton's HTTP server does not answer a request that failed with UNKNOWN",
    ),
    "answer error CANCELLED by http": (
        {("status",): "499"},
        "a cancelled request has status 499 here",
    ),
    "answer sender says twice": (
        {
            (): [
                _FINE,
                {"id": "", "outputs": {"told": ["BYTES", [1], [_TWICE]], "number": ["INT32", [1], [7]]}},
            ]
        },
        "the first response of a model that is not decoupled is its last; Triton waits for a final flag",
    ),
    "coroutine raised": (
        {
            (
                "error",
            ): "Failed to process the request(s) for model 'coroutine_0', message: ValueError: negative"
            "\n\nAt:\n"
            "  1/model.py(15): answer\n  1/model.py(9): execute\n"
        },
        "the frame that awaited is shown, too",
    ),
    "call version": (
        {
            (1,): {
                "error": (
                    "Model answers - Error when running inference: Failed for execute the inference request."
                    " Model 'answers' is not ready. Request for unknown model: 'answers' version 2 is not"
                    " found"
                ),
                "code": "NOT_FOUND",
            }
        },
        _WHY,
    ),
    "call unknown": (
        {
            (): {
                "error": (
                    "Model nobody - Error when running inference: Failed for execute the inference request."
                    " Model 'nobody' is not ready. Request for unknown model: 'nobody' is not found"
                ),
                "code": "NOT_FOUND",
            }
        },
        _WHY,
    ),
    **dict.fromkeys(
        ("call wrong_input", "call without_a_sequence"),
        ({("code",): "INVALID_ARG"}, _CODE_OF_REASON),
    ),
    "call wrong_name": (
        {
            ("code",): "INVALID_ARG",
            (
                "error",
            ): "Model answers - Error when running inference: unexpected inference input 'who' for model"
            " 'answers'; expected 'how', but missing required input(s) ['how']",
        },
        _CODE_OF_REASON,
    ),
    **dict.fromkeys(
        ("call wrong_output", "call wrong_output_async"),
        (
            {
                ("code",): "INVALID_ARG",
                (
                    "error",
                ): "Model answers - Error when running inference: unexpected inference output 'nothing'"
                " for model 'answers', expected one of number, told",
            },
            _CODE_OF_REASON,
        ),
    ),
    "call many_of_a_wrong_output": (
        {
            (0, "code"): "INVALID_ARG",
            (
                0,
                "error",
            ): "Model decoupled - Error when running inference: unexpected inference output 'nothing'"
            " for model 'decoupled', expected one of number, told",
        },
        _CODE_OF_REASON,
    ),
    "call failed": ({("code",): "NOT_FOUND"}, _CODE),
    "call many_failed": ({(0, "code"): "NOT_FOUND"}, _CODE),
    "call endless": (
        {(): [{"number": [str(number)], "told": ["b'fine'"]} for number in range(3)]},
        "Triton 2.51 has no `cancel` yet",
    ),
    "call itself": (
        {
            (): {
                "error": "Model caller - Error when running inference: the call would close a cycle of"
                " waiting models: 'caller' version 1 -> 'caller' version 1",
                "code": "INTERNAL",
            }
        },
        _CYCLE,
    ),
    "call around": (
        {
            (): {
                "error": (
                    "Model caller - Error when running inference: the call would close a cycle of waiting"
                    " models: 'around' version 1 -> 'caller' version 1 -> "
                    "'around' version 1"
                ),
                "code": "INTERNAL",
            }
        },
        _CYCLE,
    ),
    "call loads_nobody": (
        {(): "failed to load 'nobody', failed to poll from model repository"},
        "Triton's server ends",
    ),
    "call unloads_nobody": (
        {(): "failed to unload 'nobody'"},
        "a missing model cannot be unloaded",
    ),
    "completion unknown datatype": (
        {
            (): {
                "error": "load failed for model 'completing': version 1 is at UNAVAILABLE state: "
                "auto_complete_config of model"
                " 'completing': input[0].data_type: unknown value 'TYPE_FP33', did you mean 'TYPE_FP32'?;\n"
            }
        },
        "Triton loads the model without inputs and outputs",
    ),
    "load without_execute": (
        {
            (): "load failed for model 'without_execute': version 1 is at UNAVAILABLE state: Python model "
            "file '1/model.py'"
            " does not implement `execute` method.;\n"
        },
        "Triton reports it with the first request",
    ),
    "load without_class": (
        {
            (): "load failed for model 'without_class': version 1 is at UNAVAILABLE state: AttributeError:"
            " module '1.model' has no attribute 'TritonPythonModel'; '1/model.py': expected a class with a"
            " method predict, or a public function with type hints, found none;\n"
        },
        "after Triton's text, the error says which other models the file may hold here",
    ),
    "metric odd_name": (
        {
            (
                "text",
            ): "Error when creating MetricFamily: Failed to process the request for model 'metrics_0', "
            "message:"
            " Invalid metric name: 'odd name' cannot name a model's metric: use letters, digits, _ and "
            ":, and none of"
            " the prefixes nv_, backline_, process_, python_"
        },
        "the error explains which names are valid",
    ),
    "iterative with an id": (
        {(): {"id": "", "outputs": {"runs": ["INT32", [1, 1], [3]], "starts": ["INT32", [1, 1], [1]]}}},
        "Triton never responds to a rescheduled request that ends the client's sequence",
    ),
}


def expect(name: str, recorded: Any) -> tuple[Any, str]:
    """The response expected where Triton gave `recorded`, and why it differs; empty if it does not."""
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
