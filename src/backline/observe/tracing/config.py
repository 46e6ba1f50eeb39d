"""What the server is told of tracing at its start: Triton's --trace-config, several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from backline.engine.errors import InvalidArgument
from backline.observe.tracing.settings import Level, Mode, TraceSetting, read_levels, read_number

_GLOBAL: Final = ("level", "rate", "count", "mode")
_TRITON: Final = ("file", "log-frequency")
_SPANS: Final = ("url", "resource", "bsp_max_queue_size", "bsp_schedule_delay", "bsp_max_export_batch_size")
#: Where OpenTelemetry's collector listens, unless the environment says another place.
DEFAULT_URL: Final = "http://localhost:4318/v1/traces"


@dataclass(frozen=True, slots=True)
class SpanOptions:
    """Where spans go. None is what OpenTelemetry's environment variables say, or their default."""

    url: str | None = None
    #: Attributes of what sends them.
    resource: tuple[tuple[str, str], ...] = ()
    #: Spans that wait at most to be sent, the milliseconds between two times, and how many go at once.
    max_queue_size: int | None = None
    schedule_delay_ms: int | None = None
    max_export_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class TraceConfig:
    """What is traced at the start, and where to."""

    levels: tuple[Level, ...] = ()
    rate: int = 1000
    count: int = -1
    mode: Mode = "triton"
    file: Path | None = None
    log_frequency: int = 0
    spans: SpanOptions = field(default_factory=SpanOptions)

    @property
    def setting(self) -> TraceSetting:
        return TraceSetting(self.levels, self.rate, self.count, self.log_frequency)


def parse_trace_config(texts: Sequence[str]) -> TraceConfig:
    """The settings "level=TIMESTAMPS", "triton,file=trace.json", "opentelemetry,url=http://...", one a text.

    Raises InvalidArgument, which says what is expected, for what is unknown or cannot be together.
    """
    given: dict[str, list[str]] = {}
    for text in texts:
        name, value = _split(text)
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name not in ("level", "opentelemetry,resource"):
            raise InvalidArgument(f"'{name}' is given {len(values)} times, expected once")
    one = {name: values[-1] for name, values in given.items()}
    mode = _mode(one.get("mode", "triton"))
    levels = read_levels(given["level"], mode) if "level" in given else ()
    file = one.get("triton,file", "")
    if levels and mode == "triton" and not file:
        raise InvalidArgument(
            "a trace level needs a place to write to: triton,file=PATH, or mode=opentelemetry"
        )
    spans = SpanOptions(
        one.get("opentelemetry,url"),
        tuple(_resource(value) for value in given.get("opentelemetry,resource", ())),
        _positive(one, "opentelemetry,bsp_max_queue_size"),
        _positive(one, "opentelemetry,bsp_schedule_delay"),
        _positive(one, "opentelemetry,bsp_max_export_batch_size"),
    )
    if (spans.max_export_batch_size or 512) > (spans.max_queue_size or 2048):
        raise InvalidArgument(
            "bsp_max_export_batch_size must not be above bsp_max_queue_size (by default 512 and 2048)"
        )
    return TraceConfig(
        levels,
        read_number("trace_rate", one.get("rate", "1000")),
        read_number("trace_count", one.get("count", "-1")),
        mode,
        Path(file) if file else None,
        read_number("log_frequency", one.get("triton,log-frequency", "0")),
        spans,
    )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise InvalidArgument(f"'{text}' is not of the form SETTING=VALUE or MODE,SETTING=VALUE")
    name = name.strip()
    known = [*_GLOBAL, *(f"triton,{one}" for one in _TRITON), *(f"opentelemetry,{one}" for one in _SPANS)]
    if name not in known:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected one of {'; '.join(known)}"
        raise InvalidArgument(f"unknown trace setting '{name}': {hint}")
    return name, value.strip()


def _mode(value: str) -> Mode:
    match value.lower():
        case "triton":
            return "triton"
        case "opentelemetry":
            return "opentelemetry"
    raise InvalidArgument(f"unknown trace mode '{value}', expected triton or opentelemetry")


def _resource(value: str) -> tuple[str, str]:
    key, equals, text = value.partition("=")
    if not equals or not key:
        raise InvalidArgument(
            f"'{value}' is no attribute of a resource, expected opentelemetry,resource=KEY=VALUE"
        )
    return key, text


def _positive(given: dict[str, str], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not 0 < int(value) < 2**31:
        raise InvalidArgument(f"'{name}' is '{value}', expected a number above 0")
    return int(value)
