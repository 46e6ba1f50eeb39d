"""Writes a response as a body, in the form that the client accepts."""

from __future__ import annotations

import msgspec

from backline.dialects.bodies import json_rows
from backline.dialects.bodies.batch import without_batch
from backline.dialects.bodies.bodies import BODIES
from backline.dialects.bodies.media import JSON, TEXT, WRITERS, choose_output
from backline.dialects.bodies.plan import BodyPlan
from backline.dialects.bodies.values import value_of
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

_encode = msgspec.json.Encoder().encode


def write_body(plan: BodyPlan, response: InferResponse) -> tuple[str, bytes]:
    """Returns the value of Content-Type and the body.

    Raises NotAcceptable if the outputs cannot be sent in the form that the client accepts, InvalidArgument if
    the client named an unknown output, and Internal for an output that must be JSON but is not.
    """
    form = plan.form
    body = BODIES.get(form.kind)
    if body is not None:
        labels = {spec.name: spec.labels for spec in plan.outputs}
        return form.kind, body.write(response.outputs, labels)
    write = WRITERS.get(form.kind)
    if write is None:
        return JSON, write_json(plan, response)
    kind = f"{form.kind}; charset=utf-8" if form.kind == TEXT else form.kind
    return kind, write(choose_output(shaped(plan, response), form), form)


def write_json(plan: BodyPlan, response: InferResponse) -> bytes:
    """Returns the outputs as JSON: by name, or a list of rows if the request was one.

    Raises Internal for an output that must be JSON but is not, and NotAcceptable for outputs that are not
    rows.
    """
    documents = frozenset([spec.name for spec in plan.outputs if spec.json])
    if plan.rows:
        labels = {spec.name: spec.labels for spec in plan.outputs}
        return json_rows.write(response.outputs, labels, documents)
    outputs = shaped(plan, response)
    return _encode({one.name: value_of(one, json=one.name in documents) for one in outputs})


def shaped(plan: BodyPlan, response: InferResponse) -> list[Tensor]:
    """Returns the outputs, without the batch dimension if the request had none."""
    return without_batch(response.outputs) if plan.unbatched else response.outputs
