"""Recognises requests that come back to the remote model that sent them.

The URLs of a remote model may lead back to this server, directly or through other servers. Then each request
would take another instance of every model on its way, until no instance is free and all requests wait for
each other. So each remote model has an id. It adds the id to the requests that it sends, and refuses requests
that contain it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from msgspec.structs import force_setattr

from backline_client.values.messages import InferRequest

#: The header field (over gRPC, metadata) with the ids of the remote models that have forwarded a request.
#: Each of them adds a field, so a value may have several ids, separated by commas.
VIA: Final = b"backline-via"
#: Matches the values that remote models send. Other values are not forwarded.
_VALID = re.compile(rb"[0-9a-f, ]{1,1024}")


def new_id() -> bytes:
    """Returns a random id for a remote model: 16 hexadecimal digits."""
    return os.urandom(8).hex().encode()


def keep_route(request: InferRequest, fields: Mapping[bytes, bytes]) -> None:
    """Copies the ids in a request's header fields or metadata (`fields`) into `request`. The request must be
    new: nothing else may refer to it.
    """
    via = fields.get(VIA)
    if via is not None:
        force_setattr(request, "via", via)  # a changed copy would take several times as long


def route_fields(id: bytes) -> dict[str, str]:
    """Returns the header field with which a remote model sends `id`; empty if `id` is empty or malformed."""
    return {VIA.decode(): id.decode()} if id and _VALID.fullmatch(id) else {}
