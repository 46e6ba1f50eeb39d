"""Which records each setting logs, and the format of the lines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from backline.observe.log.server_log import KEPT, LONGEST, ServerLog, formatter, masked
from backline.observe.log.settings import LogFormat, LogSettings

Started = Callable[..., tuple[ServerLog, Callable[[], list[str]]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Installs a log with the given settings; its lines are read after it is uninstalled."""
    with ExitStack() as installed:

        def started(**settings: Any) -> tuple[ServerLog, Callable[[], list[str]]]:
            file = tmp_path / "log"
            log = ServerLog(LogSettings(file=str(file), **settings))
            installed.enter_context(log.installed())

            def lines() -> list[str]:
                installed.close()
                return file.read_text().splitlines()

            return log, lines

        yield started


def say_everything() -> None:
    for name in ("backline.model", "backline.wire", "elsewhere"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logging.getLogger(name).log(level, "%s", logging.getLevelName(level))


ALL = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
OF_ERRORS = {"ERROR", "CRITICAL"}


@pytest.mark.parametrize(
    ("settings", "of_models", "of_others"),
    [
        ({}, ALL - {"DEBUG", "INFO"}, ALL - {"DEBUG", "INFO"}),
        ({"info": True}, ALL - {"DEBUG"}, ALL - {"DEBUG"}),
        ({"warning": False}, OF_ERRORS, OF_ERRORS),
        ({"info": True, "warning": False}, {"INFO", *OF_ERRORS}, {"INFO", *OF_ERRORS}),
        ({"info": True, "warning": True, "error": False}, {"INFO", "WARNING"}, {"INFO", "WARNING"}),
        ({"warning": False, "error": False}, set(), set()),
        ({"verbose_level": 1}, ALL - {"INFO"}, ALL - {"DEBUG", "INFO"}),
        ({"verbose_level": 2, "info": True}, ALL, ALL),
    ],
)
def test_each_severity_can_be_switched(
    start: Started, settings: dict[str, Any], of_models: set[str], of_others: set[str]
) -> None:
    _, lines = start(**settings)

    say_everything()

    found = [re.fullmatch(r"\S+ \S+ (\w+) ([\w.]+): \1", line) for line in lines()]
    heard = {
        name: {match[1] for match in found if match is not None and match[2] == name}
        for name in ("backline.model", "elsewhere")
    }
    assert heard == {"backline.model": of_models, "elsewhere": of_others}


def test_a_change_takes_effect_immediately(start: Started) -> None:
    log, lines = start()

    logging.getLogger("backline.wire").info("before")
    log.update({"log_info": True, "log_format": "json"})
    logging.getLogger("backline.wire").info("after")

    first, second = map(json.loads, lines())
    assert first["message"] == "log settings changed by request: log_info True, log_format json"
    assert second["message"] == "after"


@pytest.mark.parametrize(
    ("level", "severities"),
    [
        ("debug", {"info": True, "warning": True, "error": True, "verbose_level": 2}),
        ("info", {"info": True, "warning": True, "error": True, "verbose_level": 0}),
        ("warning", {"info": False, "warning": True, "error": True, "verbose_level": 0}),
        ("error", {"info": False, "warning": False, "error": True, "verbose_level": 0}),
    ],
)
def test_a_level_sets_the_severities_that_are_not_set_explicitly(
    level: Any, severities: dict[str, Any]
) -> None:
    assert LogSettings.of_level(level) == LogSettings(**severities)
    assert LogSettings.of_level(level, info=not severities["info"], verbose_level=1) == LogSettings(
        **{**severities, "info": not severities["info"], "verbose_level": 1}
    )


def test_a_json_line_has_all_fields(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    # An unpaired surrogate is not UTF-8, which pytest's worker processes use to send captured output.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    _, lines = start(format="json")

    try:
        raise ValueError('a "quoted"\nreason')
    except ValueError:
        logging.getLogger("backline.wire").exception(
            "it failed for %s", "x\ny", extra={"fields": {"model": "add1", "queue_us": 12}}
        )
    logging.getLogger("backline.wire").warning("half a pair: %s", "\ud800")

    failed, half = lines()
    document = json.loads(failed)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.pop("time"))
    assert 'ValueError: a "quoted"\nreason' in document.pop("exception")
    assert document == {
        "level": "error",
        "logger": "backline.wire",
        "message": "it failed for x\ny",
        "model": "add1",
        "queue_us": 12,
    }
    assert json.loads(half)["message"] == "half a pair: ?"


def test_iso8601_times_are_in_utc(start: Started) -> None:
    _, lines = start(format="ISO8601")

    logging.getLogger("backline.wire").warning("now")

    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING backline.wire: now", line)


def test_a_record_that_cannot_be_formatted_is_still_logged(start: Started) -> None:
    log, lines = start()

    log.handle(
        logging.LogRecord("backline.wire", logging.WARNING, __file__, 0, "%d requests", ("many",), None)
    )

    (line,) = lines()
    assert line.startswith("cannot format a record of backline.wire, '%d requests': ")


def test_a_listener_gets_the_settings_and_every_change(start: Started) -> None:
    log, _ = start()
    found: list[int] = []

    log.watch(lambda settings: found.append(settings.verbose_level))
    log.update({"log_verbose_level": 1})

    assert found == [0, 1]


def test_uninstalling_restores_the_programs_log(start: Started) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    _, lines = start(verbose_level=2)
    assert root.level == logging.DEBUG

    lines()

    assert (root.level, root.handlers) == before
    assert logging.getLogger("backline.model").level == logging.NOTSET


@pytest.mark.parametrize("kind", ["default", "ISO8601", "json"])
def test_control_characters_of_a_message_are_escaped(kind: LogFormat) -> None:
    record = logging.LogRecord(
        "x", logging.INFO, "", 0, "a %s", ("\r\n\x1b[31m\x7f\x9b\u2028\u202e\x00",), None
    )
    text = formatter(kind).format(record)
    assert text.isprintable()
    if kind == "json":
        assert json.loads(text)["message"] == "a \r\n\x1b[31m\x7f\x9b\u2028\u202e\x00"
    else:
        assert text.endswith("a \\r\\n\\x1b[31m\\x7f\\x9b\\u2028\\u202e\\x00")


def test_a_traceback_keeps_its_lines_which_look_like_no_record() -> None:
    try:
        raise ValueError("a\x1b[31m\n2026-11-25 INFO forged")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "b", (), (ValueError, error, error.__traceback__)
        )
    first, *others = formatter("default").format(record).split("\n")
    assert first.endswith("b")
    assert len(others) > 3
    assert all(line.isprintable() and line.startswith("  ") for line in others)


@pytest.mark.parametrize("kind", ["default", "ISO8601"])
def test_a_traceback_of_a_model_has_its_own_lines_which_look_like_no_record(kind: LogFormat) -> None:
    text = "model 'a': Traceback (most recent call last):\nValueError: \x1b[31m\n2026-11-25 INFO forged"
    first, *others = formatter(kind).format(_record(text, multiline=True)).split("\n")

    assert first.endswith("model 'a': Traceback (most recent call last):")
    assert others == ["  ValueError: \\x1b[31m", "  2026-11-25 INFO forged"]


def _record(message: str, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord("backline.x", level, "/src/journal.py", 99, message, None, None)
    record.created = 1_795_764_000.25  # 2026-11-27 06:40 UTC
    record.msecs = 250.0
    record.process = 4242
    vars(record).update(extra)
    return record


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (logging.DEBUG, "I"),
        (logging.INFO, "I"),
        (logging.WARNING, "W"),
        (logging.ERROR, "E"),
        (logging.CRITICAL, "E"),
    ],
)
def test_lines_in_tritons_form_have_severity_time_process_and_place(level: int, severity: str) -> None:
    plain = formatter("default", "triton").format(_record("loading: a:1", level))
    iso = formatter("ISO8601", "triton").format(_record("loading: a:1", level))

    # The first is in local time.
    assert re.fullmatch(
        severity + r'112[678] \d\d:\d\d:00\.250000 4242 journal\.py:99\] "loading: a:1"', plain
    )
    assert iso == f'2026-11-27T07:20:00.250Z {severity} 4242 journal.py:99] "loading: a:1"'


def test_a_message_in_tritons_form_cannot_forge_a_line_or_end_its_quotes() -> None:
    line = formatter("default", "triton").format(_record('a"\nI1127 \\ \x1b[2J'))

    assert line.endswith(r'] "a\"\nI1127 \\ \x1b[2J"')


def test_a_table_in_tritons_form_follows_its_line() -> None:
    lines = formatter("default", "triton").format(_record("models", table="+--+\n| a |\n")).split("\n")

    assert lines[0].endswith("journal.py:99] ")
    assert lines[1:] == ["+--+", "| a |", ""]


def test_tritons_form_is_not_a_setting_that_clients_see() -> None:
    assert "log_style" not in LogSettings(style="triton").shown()


def test_only_the_last_entries_are_kept_in_memory_and_long_ones_are_cut(start: Started) -> None:
    log, _ = start()
    for number in range(KEPT + 3):
        logging.getLogger("elsewhere").error("entry %d", number)
    logging.getLogger("elsewhere").error("x" * (2 * LONGEST))
    found = log.recent()
    assert [line.number for line in found] == list(range(5, KEPT + 5))
    assert len(found[-1].text) == LONGEST + len("...")
    assert log.recent(KEPT + 3) == found[-1:]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key bk_abcdefgh12345", "key bk_***"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("token eyJhbGciOiJIUzI1.eyJzdWIi.c2lnbmF0dXJl", "token eyJ***"),
        ("redis://user:pass@cache:6379/0", "redis://***@cache:6379/0"),
        ("GET https://b/x?X-Amz-Signature=00ff&part=1", "GET https://b/x?X-Amz-Signature=***&part=1"),
        ("nothing secret: add1 version 2 is ready", "nothing secret: add1 version 2 is ready"),
    ],
)
def test_what_looks_like_a_secret_is_masked_for_readers(text: str, shown: str) -> None:
    assert masked(text) == shown
