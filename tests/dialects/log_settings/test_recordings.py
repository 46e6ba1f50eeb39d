"""The logging extension responds as recorded from Triton 2.51 by record_triton.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import models
from support.server import serve

pytest.importorskip("tritonclient")
from dialects.log_settings.cases import CASES, DEFAULTS, Ask

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_2_51.json").read_text())
CHANGEABLE = ("--model-control-mode", "poll")
_BEFORE = {"log_file": "", **DEFAULTS}

_STATUS = "a client's fault is 400, and the message names the setting and what was given"
_REFUSED = "what has no meaning is refused rather than ignored"
_PARSE = "failed to parse the request JSON buffer"
_UNKNOWN = "unknown log setting 'log_debug'. Expected one of log_file, log_info"

#: Differences from Triton: the status and start of the message, or the returned settings, and the reason.
DIFFERENCES: dict[str, tuple[tuple[str, str] | dict[str, Any], str]] = {
    **{f"{name} as body": (("400", _PARSE), _STATUS) for name in ("no JSON", "two values")},
    "empty as body": (_BEFORE, "an empty body is an empty object, as everywhere here"),
    **{f"{name} as body": (("400", _PARSE), _REFUSED) for name in ("a list", "a number")},
    "a text for info as body": (("400", "expect boolean for 'log_info', got true"), _STATUS),
    "a number for error as body": (("400", "expect boolean for 'log_error', got 1"), _STATUS),
    "a text for a level as body": (("400", "expect int32 for 'log_verbose_level', got 1"), _STATUS),
    "a negative level as body": (("400", "expect int32 for 'log_verbose_level', got -1"), _STATUS),
    "a fraction as level as body": (("400", "expect int32 for 'log_verbose_level', got 1.5"), _STATUS),
    "a level of true as body": (("400", "expect int32 for 'log_verbose_level', got True"), _STATUS),
    "a number for the format as body": (("400", "expect string for 'log_format', got 1"), _STATUS),
    "one good and one bad as body": (
        ("400", "expect boolean for 'log_warning', got x"),
        "all settings are changed or none",
    ),
    "one good and one bad as message": (
        ("StatusCode.INVALID_ARGUMENT", "invalid argument for log_format, got: x"),
        "all settings are changed or none",
    ),
    "a level that is too large as body": (
        ("400", "expect int32 for 'log_verbose_level', got 4294967296"),
        "Triton sets it to 0",
    ),
    "a level that is too large as message": (
        ("StatusCode.INVALID_ARGUMENT", "expect int32 for 'log_verbose_level', got 4294967295"),
        "Triton sets it to 0",
    ),
    "twice as body": (
        {**_BEFORE, "log_info": False},
        "the last of two values counts, as in most JSON readers",
    ),
    **{
        f"a format that there is not by {way}": (
            ("400", "invalid argument for log_format, got: iso. Expected default, ISO8601, json"),
            _STATUS,
        )
        for way in ("http", "http aio")
    },
    **{f"unknown by {way}": (("400", _UNKNOWN), _REFUSED) for way in ("http", "http aio")},
    **{
        f"unknown by {way}": (("StatusCode.INVALID_ARGUMENT", _UNKNOWN), _REFUSED)
        for way in ("grpc", "grpc aio")
    },
}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    folder = tmp_path_factory.mktemp("log_settings")
    models.add1(folder / "models")
    with serve(folder / "models", folder / "log", "--log-info", "true", *CHANGEABLE) as server:
        yield Ask(server.http_port, server.grpc_port)


def expected(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The response without its error text, the start of that text, and the settings after it."""
    differs = DIFFERENCES[name][0] if name in DIFFERENCES else None
    if isinstance(differs, tuple):
        return {"status": differs[0]}, differs[1], _BEFORE
    if differs is not None:
        return differs, "", differs
    answer = dict(RECORDED[name]["answer"])
    return answer, answer.pop("error", ""), RECORDED[name]["after"]


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_that_of_triton(ask: Ask, name: str) -> None:
    """Differences must be listed above; an error text may be longer."""
    answer, error, after = expected(name)

    given = ask.run(name)

    said = given["answer"].pop("error", "")
    assert (given["answer"], given["after"]) == (answer, after), said
    assert said.startswith(error)


def test_listed_differences_exist(ask: Ask) -> None:
    for name in DIFFERENCES:
        answer, error, after = expected(name)
        recorded = dict(RECORDED[name]["answer"])
        assert (answer, after) != (recorded, RECORDED[name]["after"]) or not recorded.get(
            "error", ""
        ).startswith(error), name


def test_json_is_a_log_format_that_triton_lacks(ask: Ask) -> None:
    changed = ask.by_client("grpc", {"log_format": "json"})
    assert changed["log_format"] == "json"
