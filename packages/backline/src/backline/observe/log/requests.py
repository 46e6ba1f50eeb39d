"""Writes a line about each request to a verbose log: its model, outcome and times.

The lines are made from the same data as traces. While the log is not verbose, no data is collected for them.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from backline.engine.tracing import TraceProtocol
from backline.observe.log.server_log import REQUESTS
from backline.observe.tracing.trace import UNKNOWN_VERSION, Exchange, Failure, RequestTrace
from backline_client.values import errors
from backline_client.values.messages import InferRequest, InferResponse

log = logging.getLogger(REQUESTS)

#: The maximum length, in characters, of a text from a client or a model; longer texts are truncated.
_LONGEST = 256
#: The names of gRPC's status codes, indexed by code (https://grpc.io/docs/guides/status-codes/).
_GRPC_STATUSES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


class RequestLog:
    """A TraceWriter that logs one line for each request from a client, and no lines for requests between
    models.
    """

    def arrived(self, exchange: Exchange[None]) -> None:
        """Logs nothing: the line is written when the request ends."""

    def began(self, trace: RequestTrace[None], request: InferRequest) -> None:
        """Logs nothing: the line is written when the request ends."""

    def context(self, kept: None) -> str:
        return "{}"

    def responded(self, request: RequestTrace[None], response: InferResponse) -> None:
        """Logs nothing, because the line that is written when the request ends has the number of
        responses.
        """

    def ended(self, request: RequestTrace[Any]) -> None:
        if request.parent is None:
            _log_line(_of_request(request))

    def answered(self, exchange: Exchange[Any]) -> None:
        """Logs a message that was refused because it could not be read as a request."""
        if not exchange.requests:
            took = exchange.sent_ns - exchange.began_ns
            _log_line(_fields(exchange.protocol, exchange.model, "", "", exchange.error, took))

    def flush(self) -> None:
        """Does nothing, because the log's thread writes lines as they arrive."""

    async def close(self) -> None:
        """Does nothing; see `flush`."""


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
    """Returns the fields of a log line in JSON. Fields without a value are left out."""
    fields = {"protocol": protocol, "model": _short(model), "version": _short(version), "id": _short(id)}
    known: dict[str, Any] = {name: value for name, value in fields.items() if value}
    known["status"] = _status(protocol, error)
    known["duration_us"] = took_ns // 1000
    if error is not None:
        known["error"] = _short(error.message)
    return known


def _log_line(fields: dict[str, Any]) -> None:
    log.debug("%s", text(fields), extra={"fields": fields})


def text(fields: dict[str, Any]) -> str:
    """Returns the log line as text. The text is always a single line, because names and ids from clients are
    escaped.
    """
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
    line = f"{asked}: {fields['status']} in {fields['duration_us']} us"
    if details:
        line += f" ({', '.join(details)})"
    return f"{line}: {_plain(fields['error'])}" if "error" in fields else line


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
