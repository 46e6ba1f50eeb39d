"""Passes header fields of requests on to models as request parameters, as Triton's header forwarding does.

Source: docs/protocol/extension_parameters.md of triton-inference-server/server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from backline.wire.application import SpelledFields
from backline_client.values.errors import InvalidArgument
from backline_client.values.memo import Memo
from backline_client.values.messages import InferRequest

#: Parameters that the server itself interprets, so no header field may be forwarded under their names.
_RESERVED = frozenset(
    ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
)
#: The maximum number of cached field names. There must be a limit, because clients choose the names.
_MAX_REMEMBERED = 256
_CASE_SENSITIVE = "(?-i)"


class ForwardPattern:
    """Selects the fields to forward: those whose name contains a match of a regular expression.

    As in Triton, case is ignored unless the expression begins with `(?-i)`. Names keep the spelling of the
    client over HTTP/1.1; over HTTP/2, and in gRPC metadata, names are in lower case.
    """

    def __init__(self, pattern: str) -> None:
        """Raises InvalidArgument if the pattern is not a regular expression."""
        exact = pattern.startswith(_CASE_SENSITIVE)
        try:
            self._pattern = re.compile(pattern.removeprefix(_CASE_SENSITIVE), 0 if exact else re.IGNORECASE)
        except re.error as error:
            raise InvalidArgument(f"'{pattern}' is not a regular expression: {error}") from None
        self._known: Memo[bytes, str] = Memo(_MAX_REMEMBERED)

    def apply(self, request: InferRequest, fields: Mapping[bytes, bytes]) -> InferRequest:
        """Returns the request with a parameter for each field that matches. Raises InvalidArgument for a
        reserved name.

        Binary metadata, whose names end with "-bin", is not forwarded: parameters are text.
        """
        spelling = fields.spelling if isinstance(fields, SpelledFields) else {}
        found = {}
        for field, value in fields.items():
            spelled = spelling.get(field, field)
            name = self._known.get(spelled)
            if name is None:
                name = self._known.keep(spelled, self._forwarded(spelled.decode("latin-1")))
            if name:
                found[name] = value.decode("utf-8", "replace")
        if not found:
            return request
        return msgspec.structs.replace(request, parameters={**(request.parameters or {}), **found})

    def _forwarded(self, name: str) -> str:
        """Returns the name of the parameter for a header field; empty if the field is not forwarded."""
        if self._pattern.search(name) is None or name.endswith("-bin"):
            return ""
        if name.lower() in _RESERVED or name.lower().startswith("triton_"):
            raise InvalidArgument(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
        return name


class Forwarding(Struct, frozen=True):
    """The patterns of the HTTP header fields and of the gRPC metadata that are forwarded to models; None
    forwards nothing.
    """

    http: ForwardPattern | None = None
    grpc: ForwardPattern | None = None

    @classmethod
    def of(cls, http: str, grpc: str) -> Forwarding:
        """Compiles two regular expressions; an empty one forwards nothing.

        Raises InvalidArgument if one of them is not a regular expression.
        """
        return cls(ForwardPattern(http) if http else None, ForwardPattern(grpc) if grpc else None)


NOTHING_FORWARDED = Forwarding()
