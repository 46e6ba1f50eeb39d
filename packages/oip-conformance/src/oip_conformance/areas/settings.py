"""The logging and trace extensions: settings that are read and changed while the server runs."""

from __future__ import annotations

from typing import Any

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.row import Area, Level
from oip_conformance.target import Target, check, equal, key, ok, refused

MUST, SHOULD, OBSERVED = Level
logging = Area("logging", "logging-tracing")
tracing = Area("tracing", "logging-tracing")
TRACE = "/v2/trace/setting"


def _log(t: Target, **settings: Any) -> dict[str, Any]:
    """The log settings, after a change if one is given."""
    answer = t.post("/v2/logging", settings) if settings else t.get("/v2/logging")
    return dict(ok(answer).json())


@logging.row("read", MUST, spec.LOG_OK)
def log_read(t: Target) -> None:
    """The log settings can be read: booleans, a whole number and a format."""
    document = _log(t)
    key(document, "log_info", bool)
    key(document, "log_verbose_level", int)
    key(document, "log_format", str)


@logging.row("change", MUST, spec.LOG_ONLY)
def log_change(t: Target) -> None:
    """A change of one setting is in the answer and in what is read afterwards, and leaves the others as they were."""
    before = _log(t)
    level = before["log_verbose_level"]
    changed = {**before, "log_verbose_level": level + 1}
    equal(_log(t, log_verbose_level=level + 1), changed, "the answer")
    equal(_log(t), changed, "the settings afterwards")
    equal(_log(t, log_verbose_level=level), before, "the settings at the end")


@logging.row("switch", MUST, spec.LOG_INFO)
def log_switch(t: Target) -> None:
    """log_info can be switched, and back."""
    before = _log(t)["log_info"]
    equal(_log(t, log_info=not before)["log_info"], not before, "log_info")
    equal(_log(t, log_info=before)["log_info"], before, "log_info")


@logging.row("wrong-type", MUST, spec.LOG_ERROR)
def log_wrong_type(t: Target) -> None:
    """A setting of the wrong type is an error, and changes nothing."""
    before = _log(t)
    refused(t.post("/v2/logging", {"log_info": "perhaps"}))
    equal(_log(t), before, "the settings afterwards")


@logging.row("unknown", OBSERVED, spec.LOG_ERROR)
def log_unknown(t: Target) -> str:
    """A setting that does not exist."""
    answer = t.post("/v2/logging", {"log_no_such_setting": 1})
    return f"refused with {answer.status}" if answer.status >= 400 else "ignored"


@logging.row("grpc", MUST, spec.LOG_RPC)
def log_grpc(t: Target) -> None:
    """LogSettings has the settings that the route has."""
    settings = t.call("LogSettings", rpc.message("LogSettingsMessage")).settings
    got = {name: getattr(value, str(value.WhichOneof("parameter_choice"))) for name, value in settings.items()}
    equal(got, _log(t), "the settings")


def _trace(t: Target, path: str = TRACE, **settings: Any) -> dict[str, Any]:
    return dict(ok(t.post(path, settings) if settings else t.get(path)).json())


@tracing.row("read", MUST, spec.TRACE_VALUES)
def trace_read(t: Target) -> None:
    """The trace settings can be read: texts, and a list of texts for the level."""
    document = _trace(t)
    level = key(document, "trace_level", list)
    check(all(isinstance(item, str) for item in level), "texts in trace_level", level)
    for name in ("trace_rate", "trace_count", "log_frequency"):
        key(document, name, str)


@tracing.row("change", MUST, spec.TRACE_ONLY)
def trace_change(t: Target) -> None:
    """A change of one setting is in the answer and in what is read afterwards, and leaves the others as they were."""
    before = _trace(t)
    changed = {**before, "trace_rate": "4321"}
    equal(_trace(t, trace_rate="4321"), changed, "the answer")
    equal(_trace(t), changed, "the settings afterwards")
    equal(_trace(t, trace_rate=before["trace_rate"]), before, "the settings at the end")


@tracing.row("model", MUST, spec.TRACE_MODEL, "sum")
def trace_model(t: Target) -> None:
    """A setting of one model does not change the global one, and null gives it the global one again."""
    path = t.path("sum", "trace/setting")
    before = _trace(t)
    equal(_trace(t, path, trace_rate="777")["trace_rate"], "777", "the model's trace_rate")
    equal(_trace(t)["trace_rate"], before["trace_rate"], "the global trace_rate")
    equal(_trace(t, path, trace_rate=None)["trace_rate"], before["trace_rate"], "the model's trace_rate after null")


@tracing.row("wrong", MUST, spec.TRACE_ERROR)
def trace_wrong(t: Target) -> None:
    """A level that does not exist and a rate that is no number are errors."""
    refused(t.post(TRACE, {"trace_level": ["NO_SUCH_LEVEL"]}))
    refused(t.post(TRACE, {"trace_rate": "often"}))


@tracing.row("grpc", MUST, spec.TRACE_RPC)
def trace_grpc(t: Target) -> None:
    """TraceSetting has the settings that the route has."""
    settings = t.call("TraceSetting", rpc.message("TraceSettingRequest")).settings
    document = _trace(t)
    wanted = {name: value if isinstance(value, list) else [value] for name, value in document.items()}
    equal({name: list(value.value) for name, value in settings.items()}, wanted, "the settings")
