"""Combines the requests of a batch along the first dimension, and splits the outputs again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backline.engine.ticket import Ticket
from backline_client.values.errors import Internal
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Tensor


def stack(tickets: Sequence[Ticket]) -> dict[str, np.ndarray]:
    """Returns the inputs of several requests, concatenated along the first dimension."""
    return {
        name: np.concatenate([ticket.request.inputs[name].data for ticket in tickets])
        for name in tickets[0].request.inputs
    }


def wanted_outputs(tickets: Sequence[Ticket], outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of the outputs to compute: every output that at least one of the requests asks for.

    `outputs` are the outputs that a request gets if it names none.
    """
    wanted = tickets[0].request.outputs
    if wanted is None:
        return outputs
    for ticket in tickets:  # `all` with a generator takes several times as long
        if ticket.request.outputs != wanted:
            break
    else:
        return wanted
    if any(ticket.request.outputs is None for ticket in tickets):
        return outputs
    union = {name for ticket in tickets for name in ticket.request.outputs or ()}
    return tuple(name for name in outputs if name in union)


def split(
    tickets: Sequence[Ticket],
    whole: Sequence[Tensor],
    model: str,
    version: str,
    parameters: dict[str, Parameter] | None = None,
) -> list[InferResponse]:
    """Returns a response for each request, with the request's rows of the outputs that it asks for. `whole`
    has the outputs of the whole batch.

    Every response gets a copy of `parameters`. Raises Internal if an output does not have a row for each
    item.
    """
    items = sum([ticket.batch_size for ticket in tickets])
    for tensor in whole:
        if not tensor.shape or tensor.shape[0] != items:
            raise Internal(
                f"output '{tensor.name}' of model '{model}' has shape {list(tensor.shape)} for a batch of"
                f" {items}; its first dimension must be {items}, one row for each item"
            )
    responses = []
    end = 0
    for ticket in tickets:
        start, end = end, end + ticket.batch_size
        request = ticket.request
        wanted = request.outputs
        outputs = []
        for tensor in whole:
            name = tensor.name
            if wanted is None or name in wanted:
                rows = tensor.data[start:end]
                outputs.append(Tensor(name, tensor.datatype, rows.shape, rows))
        own = dict(parameters) if parameters else parameters
        responses.append(InferResponse(model, version, request.id, outputs, own))
    return responses
