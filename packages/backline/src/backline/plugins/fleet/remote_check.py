"""The check of requests to a remote model, which also decides which of them may share a call."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from sys import getsizeof

from backline.engine.ticket import Ticket
from backline.plugins.fleet.description import DescriptionWatch
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal
from backline_client.values.messages import InferRequest
from backline_client.values.signature import Signature
from backline_client.values.tensor import element_count

#: A request whose inputs have more bytes than this is sent alone, because copying the inputs into a shared
#: call would take longer than a separate call.
_LARGEST_SHARED = 64 * 1024


class RemoteCheck:
    """A check of the requests to a remote model. It notifies `watch` of each request, refuses requests that
    the model itself has sent (see `route.py`), runs `check` on all others, and then sets the `batch_key`
    so that only requests that may share a call have equal keys.

    A call has only one set of parameters, one priority, one list of outputs and one route through other
    servers, so requests share a call only if they agree on all of these. Requests that belong to a sequence
    or are traced are sent alone, because the other server needs the id of the sequence or trace. So are
    requests without items, which must not succeed only because they share a call, and requests with more than
    _LARGEST_SHARED bytes.

    All this is one function rather than one check around another, because each call takes about as long as
    the whole check of a request.
    """

    def __init__(
        self,
        name: str,
        id: bytes,
        urls: str,
        check: Callable[[Ticket], None],
        watch: DescriptionWatch,
        signature: Signature,
        max_batch_size: int,
    ) -> None:
        """`id` is the id of the remote model, and `urls` are its servers."""
        self._name = name
        self._id = id
        self._urls = urls
        self._check = check
        self._watch = watch
        #: Whether a request that might share a call may have more than _LARGEST_SHARED bytes.
        self._may_be_large = max_batch_size > 1 and _largest(signature, max_batch_size) > _LARGEST_SHARED

    def __call__(self, ticket: Ticket) -> None:
        """Raises InvalidArgument if the request does not fit the model, and Internal if it has come back."""
        if self._watch.resting:
            self._watch.look_soon()
        request = ticket.request
        via = request.via
        if via and self._id in via:
            raise Internal(
                f"model '{self._name}' is served by {self._urls}, but from there its requests come back to"
                " this server: correct the parameter 'urls' of this model, or of a remote model that the"
                " requests pass through"
            )
        self._check(ticket)
        if (
            request.sequence is not None
            or ticket.trace is not None
            or ticket.batch_size < 1  # the other server may refuse a request without items
            or (self._may_be_large and _size(request) > _LARGEST_SHARED)
        ):
            ticket.batch_key = object()  # differs from every other key, so the request is sent alone
        elif via or request.outputs is not None or request.priority or request.parameters:
            # The parameters are compared as text, because 1 and True are equal in Python, but not to the
            # other server.
            parameters = repr(request.parameters) if request.parameters else ""
            ticket.batch_key = ticket.batch_key, request.outputs, request.priority, parameters, via


def _largest(signature: Signature, items: int) -> float:
    """Returns the maximum size, in bytes, of the inputs of a request with up to `items` items; infinity if
    the size has no limit.
    """
    if not signature.is_fixed(batched=True) or any(not spec.datatype.itemsize for spec in signature.inputs):
        return inf
    return items * sum(element_count(spec.shape[1:]) * spec.datatype.itemsize for spec in signature.inputs)


def _size(request: InferRequest) -> int:
    tensors = request.inputs.values()
    size = sum([tensor.data.nbytes for tensor in tensors])
    if size <= _LARGEST_SHARED:
        for tensor in tensors:
            if tensor.datatype is DataType.BYTES:  # the array has only pointers to the strings
                size += sum(map(getsizeof, tensor.data.reshape(-1).tolist()))
    return size
