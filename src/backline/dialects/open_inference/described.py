"""The check of a large request by its description alone, before its data is decoded."""

from __future__ import annotations

import numpy as np

from backline.dialects.open_inference.plan import InferPlan
from backline.engine.engine import Engine
from backline.engine.messages import InferRequest
from backline.engine.signature import RequestCheck
from backline.engine.tensor import Tensor
from backline.engine.ticket import unsubmitted

_NO_DATA = np.empty(1, np.uint8)


def check_description(engine: Engine, model: str, version: str, id: str, plan: InferPlan) -> None:
    """Compares the names, datatypes and shapes of a request with the model, so that no data is decoded that the model would refuse.

    Raises NotFound, Unavailable or InvalidArgument, as submitting the request would. Two kinds of request pass unchecked and are checked
    when they are submitted: those to models that are not loaded yet, and those of sequences, which may belong to a version that is on its
    way out. Safe on any thread.
    """
    served = engine.find_ready(model, version)
    if plan.sequence is not None or served.on_demand:
        return
    described = {spec.name: Tensor(spec.name, spec.datatype, spec.shape, _NO_DATA) for spec in plan.inputs}
    ticket = unsubmitted(InferRequest(model, described, id=id, outputs=plan.outputs))
    # The batch size is left to the model's own check: only that one knows whether its limit is strict.
    RequestCheck(served.name, served.signature, served.max_batch_size, strict=False)(ticket)
