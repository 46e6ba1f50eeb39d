"""A line of the log for each request, while the log is verbose: what was asked, what came of it, and how long it took.

It is told by the same notes that traces are made of, so that nothing is paid for it otherwise.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from backline.engine import errors
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.tracing import TraceProtocol
from backline.observe.log.server_log import REQUESTS
from backline.observe.tracing.trace import UNKNOWN_VERSION, Exchange, Failure, RequestTrace

log = logging.getLogger(REQUESTS)

#: Characters of what a client or a model has written; more are left out.
_LONGEST = 256
#: By code (https://grpc.io/docs/guides/status-codes/).
_GRPC_STATUSES = (
    *(
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
    ),
    *(
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
    ),
    "UNAUTHENTICATED",
)


class RequestLog:
    """Fits TraceWriter, and keeps nothing. Requests that models make of others have no line of their own."""

    def arrived(self, exchange: Exchange[None]) -> None:
        """Nothing is told of it yet."""

    def began(self, trace: RequestTrace[None], request: InferRequest) -> None:
        """Nothing is told of it yet."""

    def context(self, kept: None) -> str:
        return "{}"

    def responded(self, request: RequestTrace[None], response: InferResponse) -> None:
        """They are counted, not told."""

    def ended(self, request: RequestTrace[Any]) -> None:
        if request.parent is None:
            _tell(_of_request(request))

    def answered(self, exchange: Exchange[Any]) -> None:
        """Of what could not be read there was no request."""
        if not exchange.requests:
            _tell(
                _fields(
                    exchange.protocol,
                    exchange.model,
                    "",
                    "",
                    exchange.error,
                    exchange.sent_ns - exchange.began_ns,
                )
            )

    def flush(self) -> None:
        """The log writes by itself."""

    async def close(self) -> None:
        """As `flush`."""


def _of_request(request: RequestTrace[Any]) -> dict[str, Any]:
    exchange, runs = request.exchange, request.runs
    took = request.ended_ns - exchange.began_ns
    version = "" if request.model_version == UNKNOWN_VERSION else request.model_version
    fields = _fields(exchange.protocol, request.model_name, version, request.id, request.error, took)
    if runs:
        fields["queue_us"] = (runs[0].started_ns - request.began_ns) // 1000
        fields["compute_us"] = sum(run.ended_ns - run.started_ns for run in runs) // 1000
        fields["batch_size"] = runs[0].batch_size
    if request.responses:
        fields["responses"] = request.responses
    return fields


def _fields(
    protocol: TraceProtocol, model: str, version: str, id: str, error: Failure | None, took_ns: int
) -> dict[str, Any]:
    """What a line tells, for collectors of JSON; what is not known is left out."""
    fields = {"protocol": protocol, "model": _short(model), "version": _short(version), "id": _short(id)}
    known: dict[str, Any] = {name: value for name, value in fields.items() if value}
    known["status"] = _status(protocol, error)
    known["duration_us"] = took_ns // 1000
    if error is not None:
        known["error"] = _short(error.message)
    return known


def _tell(fields: dict[str, Any]) -> None:
    log.debug("%s", text(fields), extra={"fields": fields})


def text(fields: dict[str, Any]) -> str:
    """A line for people: one, whatever a client has put into a name or an id."""
    asked = f"{fields['protocol']} {_plain(fields.get('model', '-'))}"
    if "version" in fields:
        asked += f" version {_plain(fields['version'])}"
    if "id" in fields:
        asked += f" id {_quoted(fields['id'])}"
    details = [f"{name} {fields[f'{name}_us']} us" for name in ("queue", "compute") if f"{name}_us" in fields]
    if "batch_size" in fields:
        details.append(f"batch of {fields['batch_size']}")
    if "responses" in fields:
        details.append(f"{fields['responses']} responses")
    told = f"{asked}: {fields['status']} in {fields['duration_us']} us"
    if details:
        told += f" ({', '.join(details)})"
    return f"{told}: {_plain(fields['error'])}" if "error" in fields else told


def _status(protocol: TraceProtocol, error: Failure | None) -> int | str:
    kind = errors.BacklineError if error is None else getattr(errors, error.kind, errors.Internal)
    if protocol == "HTTP":
        return 200 if error is None else int(kind.http_status)
    return _GRPC_STATUSES[0 if error is None else kind.grpc_code]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _plain(text: str) -> str:
    return text if text.isprintable() else _quoted(text)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text.encode(errors="replace").decode()).decode()
