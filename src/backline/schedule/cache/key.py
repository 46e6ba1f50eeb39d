"""The key of a request: what its answer depends on, and nothing else."""

from __future__ import annotations

import hashlib

from backline.engine.datatypes import DataType
from backline.engine.tensor import encode_tensor
from backline.engine.ticket import Ticket


class RequestKeys:
    """Makes the keys of the requests of one load of a model version.

    A key is the SHA-256 of the model, its version and the fingerprint of what was loaded, of each input's name, datatype, shape and bytes,
    of the outputs that are asked for, and of the request's parameters, which a model may read. It is not a short checksum, as Triton's is:
    whoever may ask a model that others ask too could make two requests that collide. What it costs is in docs/decisions/response-cache.md.
    """

    __slots__ = ("_start",)

    def __init__(self, model: str, version: str, fingerprint: str) -> None:
        self._start = hashlib.sha256(repr((model, version, fingerprint)).encode("utf-8", "surrogatepass"))

    def of(self, ticket: Ticket) -> bytes:
        """The key; inputs in another order make the same one. May be called on any thread."""
        digest = self._start.copy()
        inputs = ticket.request.inputs
        for name in sorted(inputs) if len(inputs) > 1 else inputs:
            tensor = inputs[name]
            data = encode_tensor(tensor)
            # Each part has its length before it, so that no two requests give the same bytes.
            digest.update(
                f"{name!r}:{tensor.datatype.name}:{tensor.shape}:{len(data)}|".encode(
                    "utf-8", "surrogatepass"
                )
            )
            digest.update(data)
        parameters = ticket.request.parameters
        if ticket.request.outputs is not None or parameters:
            rest = repr((ticket.request.outputs, sorted(parameters.items()) if parameters else None))
            digest.update(rest.encode("utf-8", "surrogatepass"))
        return digest.digest()


def input_bytes(ticket: Ticket) -> int:
    """The bytes that a key is made of; of BYTES tensors, whose elements would have to be looked at, about as many."""
    return sum(
        tensor.data.size * 32 if tensor.datatype is DataType.BYTES else tensor.data.nbytes
        for tensor in ticket.request.inputs.values()
    )
