"""Runs the rows against a server, one after the other, and never waits for long."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oip_conformance import rpc
from oip_conformance.areas.infer import LEFT, RIGHT, sum_request
from oip_conformance.row import Failure, Level, NoAnswer, NotRun, Row, Verdict
from oip_conformance.rpc import RpcError
from oip_conformance.suite_models import MODELS
from oip_conformance.target import Target
from oip_conformance.tensors import Tensor, sample

#: Seconds for all requests of a row, and for those of a row after several had no answer.
ROW_SECONDS, IMPATIENT_SECONDS = 6.0, 1.0
#: Rows without an answer after which the rest get less time.
PATIENCE = 3
#: Seconds for a run; the rows that are left then are not run.
RUN_SECONDS = 80.0


@dataclass(slots=True)
class Result:
    """What came of one row."""

    row: Row
    verdict: Verdict
    #: What was observed, or why the row was not run.
    note: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""
    #: Each request as a command line, with its answer.
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Run:
    """All results of one run."""

    url: str
    server: str
    date: str
    #: The profiles that were run, and those that the server does not offer.
    offered: list[str]
    missing: list[str]
    results: list[Result] = field(default_factory=list)
    #: Why the run ended before its last row, or "".
    stopped: str = ""

    def count(self) -> Counter[Verdict]:
        return Counter(result.verdict for result in self.results)

    def failures(self, level: Level) -> list[Result]:
        return [result for result in self.results if result.verdict is Verdict.FAILED and result.row.level is level]


def _announced(t: Target, *extensions: str) -> bool:
    document = t.get("/v2").json()
    return any(name in document.get("extensions", []) for name in extensions)


def _offers_binary(t: Target) -> bool:
    return _announced(t, "binary_tensor_data") or (
        "sum" in models_on(t, ["sum"])
        and sum_request(t, parameters={"binary_data_output": True}).header("Inference-Header-Content-Length")
        is not None
    )


def _offers_stream(t: Target) -> bool:
    request = rpc.infer_request(t.name("sum"), t.tensors("sum", LEFT, RIGHT))
    try:
        responses = t.stream([request])
    except RpcError:
        return False
    return any(response.error_message or response.infer_response.model_name for response in responses)


def _offers_grpc(t: Target) -> bool:
    try:
        t.call("ServerLive")
    except RpcError as error:
        return error.code.name not in ("UNAVAILABLE", "UNIMPLEMENTED")
    return True


#: By profile, whether the server offers it: it says so, or answers the profile's first request.
PROFILES: dict[str, Callable[[Target], bool]] = {
    "required": lambda t: True,
    "binary": _offers_binary,
    "grpc": _offers_grpc,
    "repository": lambda t: t.post("/v2/repository/index", {}).status == 200,
    "stream": _offers_stream,
    "sequence": lambda t: _announced(t, "sequence"),
    "statistics": lambda t: t.get(t.path("sum", "stats")).status == 200,
    "configuration": lambda t: t.get(t.path("sum", "config")).status == 200,
    "classification": lambda t: _announced(t, "classification"),
    "shared-memory": lambda t: t.get("/v2/systemsharedmemory/status").status == 200,
    "generate": lambda t: t.post(t.path("text", "generate"), {"text_input": "a"}).status == 200,
    "logging-tracing": lambda t: t.get("/v2/logging").status == 200 or t.get("/v2/trace/setting").status == 200,
}


def models_on(t: Target, names: Sequence[str]) -> set[str]:
    """Those of the suite's models that the server has; one that does not say within its time counts as there."""
    return {name for name in names if _has(t, name)}


def _has(t: Target, name: str) -> bool:
    """Whether the server shows the model's metadata, calls it ready or, for lack of these routes, answers a request."""
    model = MODELS[name]
    version = model.versions[0] if len(model.versions) > 1 else None
    t.begin(IMPATIENT_SECONDS)
    try:
        if 200 in (t.get(t.path(name, what, version)).status for what in ("", "ready")):
            return True
        return t.infer(name, *_samples(name), version=version).status in (200, 500, 503)
    except NoAnswer:
        return True
    except Failure:
        return False


def learn_ports(t: Target, models: set[str]) -> None:
    """Takes the names of inputs and outputs from the metadata of models that have other ones than the suite's.

    Without metadata, the names of the outputs are those of an answer.
    """
    for name in sorted(models):
        own = t.input_names(name), t.output_names(name)
        try:
            answer = t.get(t.path(name))
            document: Any = (answer if answer.status == 200 else t.infer(name, *_samples(name))).json()
            found = [
                [e["name"] for e in document.get(kind, [])] or own[i] for i, kind in enumerate(("inputs", "outputs"))
            ]
        except (Failure, KeyError, TypeError, AttributeError):
            continue
        if list(map(len, found)) == list(map(len, own)) and list(map(set, found)) != list(map(set, own)):
            t.ports[name] = found[0], found[1]


def _samples(name: str) -> list[Tensor]:
    """One tensor for each of a model's inputs."""
    model = MODELS[name]
    return [
        sample(port.name, port.datatype, tuple(max(1, size) for size in model.shape(port))) for port in model.inputs
    ]


def run(
    t: Target,
    rows: Sequence[Row],
    profiles: Sequence[str],
    seconds: float = RUN_SECONDS,
    row_seconds: float = ROW_SECONDS,
    report: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Runs rows against a server.

    Args:
        profiles: those whose rows are run, if the server offers them.
        seconds, row_seconds: the longest time for all rows, and for one.
        report: called with each result as it comes.

    Raises NoAnswer if the server does not answer at all.
    """
    started = time.monotonic()
    t.begin(row_seconds)
    try:
        document = t.get("/v2").json()
        server = f"{document.get('name')} {document.get('version')}"
    except NoAnswer:
        raise
    except (Failure, AttributeError):
        server = "a server without metadata"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    outcome = Run(t.http.url, server, now, [], [])
    models = models_on(t, sorted({model for row in rows for model in row.models} | {"sum", "text"}))
    t.begin(row_seconds)
    learn_ports(t, models)
    for profile in profiles:
        t.begin(row_seconds)
        try:
            (outcome.offered if PROFILES[profile](t) else outcome.missing).append(profile)
        except (Failure, AttributeError):
            outcome.offered.append(profile)
        except NotRun:
            outcome.missing.append(profile)
    hung = dead = 0
    for row in rows:
        if row.profile not in profiles:
            continue
        if row.profile in outcome.missing:
            result = Result(row, Verdict.NOT_RUN, f"the server does not offer the profile {row.profile}")
        elif lacking := [model for model in row.models if model not in models]:
            versions = " with versions" if len(MODELS[lacking[0]].versions) > 1 else ""
            result = Result(row, Verdict.NOT_RUN, f"the server has no model '{t.name(lacking[0])}'{versions}")
        elif outcome.stopped:
            result = Result(row, Verdict.NOT_RUN, outcome.stopped)
        else:
            limit = row_seconds if hung < PATIENCE else min(row_seconds, IMPATIENT_SECONDS)
            result, answered = run_row(t, row, limit)
            hung += not answered
            dead = 0 if answered or _alive(t) else dead + 1
            if dead == PATIENCE:
                outcome.stopped = f"the server no longer answered, first at {row.id}"
            elif time.monotonic() - started > seconds:
                outcome.stopped = f"the run's {seconds:.0f} seconds were over"
        outcome.results.append(result)
        report(result)
    return outcome


def run_row(t: Target, row: Row, seconds: float) -> tuple[Result, bool]:
    """Runs one row; the second value says whether the server answered."""
    t.begin(seconds)
    started = time.monotonic()
    answered = True
    try:
        with np.errstate(all="ignore"):
            note = row.check(t)
        result = Result(row, Verdict.OBSERVED if row.level is Level.OBSERVED else Verdict.PASSED, note or "")
    except NotRun as reason:
        result = Result(row, Verdict.NOT_RUN, str(reason))
    except Failure as failure:
        answered = not isinstance(failure, NoAnswer)
        result = Result(row, Verdict.FAILED, "", failure.expected, failure.got, failure.hint)
    except RpcError as error:
        result = Result(row, Verdict.FAILED, "", "status OK", str(error))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
        # A row reads answers as if they were well-formed; one that is not ends here.
        result = Result(row, Verdict.FAILED, "", "an answer of the protocol's form", f"{type(error).__name__}: {error}")
    if result.verdict is Verdict.FAILED and row.level is Level.OBSERVED and answered:
        result.verdict, result.note = Verdict.OBSERVED, f"neither: {result.got[:80]}"
    result.seconds = time.monotonic() - started
    result.exchanges = list(t.exchanges)
    return result, answered


def _alive(t: Target) -> bool:
    t.begin(IMPATIENT_SECONDS)
    try:
        return t.get("/v2/health/live").status < 600
    except Failure:
        return False
