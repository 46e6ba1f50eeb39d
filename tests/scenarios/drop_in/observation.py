"""Statistics, metrics and lines of the log, after the same requests to models that nothing else asks."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from typing import Any

from scenarios.exchanges import without
from scenarios.gate import PATIENCE
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

_LOADS = "/v2/repository/models"
#: Values of metrics that are counts; all others are durations or sizes.
_COUNTS = ("success", "failure", "inference_count", "exec_count", "pending_request_count", "num_")


def _ask(session: Session, model: str, rows: int, data: int | None = None) -> None:
    values = [5] * (rows if data is None else data)
    given = {"name": "IN", "datatype": "INT32", "shape": [rows, 1], "data": values}
    session.wire.http("POST", f"/v2/models/{model}/infer", {"inputs": [given]})


def _fresh(session: Session) -> None:
    """Loads the model `later` again, so that its statistics start at zero, and asks it."""
    session.wire.http("POST", f"{_LOADS}/later/load", {})
    for rows in (1, 1, 3):
        _ask(session, "later", rows)
    _ask(session, "later", 9)
    session.pause()


def _unload(session: Session) -> None:
    session.wire.http("POST", f"{_LOADS}/later/unload", {})
    end = time.monotonic() + PATIENCE
    while session.wire.http("GET", "/v2/models/later/ready")["status"] == 200 and time.monotonic() < end:
        time.sleep(0.01)


@scenario("http")
def statistics_over_http(session: Session) -> Seen:
    _fresh(session)
    try:
        seen = session.wire.get(
            "/v2/models/later/stats",
            "/v2/models/later/versions/5/stats",
            "/v2/models/later/versions/2/stats",
            "/v2/models/nobody/stats",
            "/v2/models/later/versions/x/stats",
            "/v2/models/spare/stats",
        )
        every = session.wire.http("GET", "/v2/models/stats")
        seen["all models"] = {
            "status": every["status"],
            "names": sorted(f"{one['name']} {one['version']}" for one in every["body"]["model_stats"]),
        }
        return without(seen, "ns", "last_inference")
    finally:
        _unload(session)


@scenario("grpc")
def statistics_over_grpc(session: Session) -> Seen:
    _fresh(session)
    try:
        named = {"later": {"name": "later"}, "nobody": {"name": "nobody"}, "spare": {"name": "spare"}}
        versions = {f"later {one}": {"name": "later", "version": one} for one in ("5", "2", "x")}
        seen = session.wire.calls("ModelStatistics", named | versions)
        return without(seen, "ns", "last_inference")
    finally:
        _unload(session)


def _metrics(session: Session) -> str:
    with urllib.request.urlopen(f"http://{session.server.metrics}/metrics", timeout=PATIENCE) as answer:
        return answer.read().decode()


def _lines(text: str, label: str) -> dict[str, Any]:
    """The lines with a label as they are, with the values of counts."""
    found = re.findall(rf"^(nv_\w+{{[^}}]*{label}[^}}]*}}) (\S+)$", text, re.MULTILINE)
    return {line: value if any(word in line for word in _COUNTS) else "a value" for line, value in found}


@scenario("http")
def metrics_of_a_model(session: Session) -> Seen:
    """A model without a cache, one with a cache, and an ensemble; and how metrics are declared."""
    for rows in (1, 1, 3):
        _ask(session, "tallied", rows)
    _ask(session, "tallied", 9)
    session.pause()
    text = _metrics(session)
    return {
        "tallied": _lines(text, 'model="tallied"'),
        "with a cache": dict.fromkeys(_lines(text, 'model="fingerprint"'), "a line"),
        "an ensemble": dict.fromkeys(_lines(text, 'model="mastering"'), "a line"),
        "an older version": dict.fromkeys(_lines(text, 'model="release",version="1"'), "a line"),
        "types": dict(re.findall(r"^# TYPE (nv_\w+) (.*)$", text, re.MULTILINE)),
        "help": dict(re.findall(r"^# HELP (nv_\w+) (.*)$", text, re.MULTILINE)),
        "without labels": dict.fromkeys(re.findall(r"^(nv_\w+) ", text, re.MULTILINE), "a line"),
    }


@scenario("http")
def routes_of_the_metrics_port(session: Session) -> Seen:
    def status(path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"http://{session.server.metrics}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.headers.get("Content-Type")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return {
        "metrics": status("/metrics"),
        "a POST": status("/metrics", "POST"),
        "on the HTTP port": session.wire.http("GET", "/metrics")["status"],
    }


#: Lines of the log that scripts look for: the level, and the text without the quotation mark before it.
_WANTED = {
    "the HTTP port": r"Started HTTPService at [\d.]+",
    "the gRPC port": r"Started GRPCInferenceService at [\d.]+",
    "the metrics port": r"Started Metrics Service at [\d.]+",
    "a load": r"loading: later:5",
    "a model is loaded": r"successfully loaded 'later'",
    "a version failed": r"failed to load 'broken' version 1: [^\\]*",
    "a model failed": r"failed to load 'broken'",
    "an unload": r"unloading: later:5",
    "a version is unloaded": r"successfully unloaded 'later' version 5",
    "a configuration that cannot be read": r"Poll failed for model directory 'misspelt'",
    "a configuration of another model": r"Poll failed for model directory 'misnamed'",
    "no class": r"failed to load 'classless' version 1: Internal: AttributeError: module '1.model' has no",
    "no backend": r"failed to load 'backendless' version 1: Invalid argument: unable to find backend library",
}
#: Models whose loads fail.
_FAILING = ("broken", "misspelt", "misnamed", "classless", "backendless")


@scenario("http")
def lines_of_the_log(session: Session) -> Seen:
    """What the server logs when it starts, and at a load, a failed load and an unload."""
    for path in ("later/load", *(f"{name}/load" for name in _FAILING)):
        session.wire.http("POST", f"{_LOADS}/{path}", {})
    _unload(session)
    end = time.monotonic() + PATIENCE
    last = ("successfully unloaded 'later'", "failed to load 'broken' version 1")
    while not all(text in _log(session) for text in last) and time.monotonic() < end:
        time.sleep(0.05)
    form = r"^([IWE])\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [\w.]+:\d+\] \"(%s)"
    text = _log(session)
    found = {name: re.search(form % wanted, text, re.MULTILINE) for name, wanted in _WANTED.items()}
    return {name: match and f"{match[1]} {match[2]}" for name, match in found.items()}


def _log(session: Session) -> str:
    return session.server.log.read_text(errors="replace")
