"""The outputs of a response as its request wants them, where that is not as the model gave them."""

from __future__ import annotations

from backline.dialects.open_inference.classification import classified_outputs
from backline.dialects.open_inference.plan import InferPlan
from backline.engine.engine import Engine
from backline.engine.messages import InferResponse
from backline.engine.tensor import Tensor


def wanted_outputs(engine: Engine, plan: InferPlan, response: InferResponse) -> list[Tensor]:
    """Classified and put into shared memory, each where `plan` asks for it. Raises BacklineError where that cannot be done."""
    outputs = classified_outputs(engine, plan, response) if plan.classes else response.outputs
    return outputs if plan.shared is None else plan.shared.store(outputs)
