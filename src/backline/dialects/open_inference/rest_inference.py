"""Inference over REST: from a request to the engine, and from its answer to the response."""

from __future__ import annotations

from functools import partial
from time import monotonic

from backline.dialects.answers import hidden_error, respond_error
from backline.dialects.open_inference.classification import classified_outputs
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.rest_request import HEADER_LENGTH, RequestReader
from backline.dialects.open_inference.rest_response import ResponseWriter
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse
from backline.wire.application import HttpRequest


class RestInference:
    """The handler of the infer routes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._submit = engine.submit
        self._read = RequestReader(engine).read
        self._write = ResponseWriter().write

    def infer(self, model: str, version: str, request: HttpRequest) -> None:
        """Submits the request; the answer comes by callback. Raises BacklineError when it is refused at once."""
        plan, id, inputs = self._read(request.body, request.headers.get(HEADER_LENGTH), model, version)
        timeout = plan.timeout
        asked = InferRequest(
            model,
            inputs,
            self._complete,
            model_version=version,
            id=id,
            outputs=plan.outputs,
            parameters=plan.parameters,
            priority=plan.priority,
            deadline=None if timeout is None else monotonic() + timeout,
            context=(request, plan),
        )
        request.on_disconnect = partial(_cancel, asked)
        self._submit(asked)

    def _complete(self, asked: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
        context = asked.context
        if context is None:
            return
        asked.context = None  # it holds the request, which holds `asked` in `on_disconnect`: no cycle is left behind
        request: HttpRequest
        plan: InferPlan
        request, plan = context  # type: ignore[misc]
        request.on_disconnect = None
        try:
            if response is None:
                raise error  # type: ignore[misc]
            outputs = classified_outputs(self._engine, plan, response) if plan.classes else response.outputs
            fields, body = self._write(plan, response, outputs)
        except BacklineError as failure:
            respond_error(request, failure)
        except Exception as failure:
            respond_error(request, hidden_error(f"the answer of model '{asked.model_name}'", failure))
        else:
            request.respond(200, fields, body)


def _cancel(asked: InferRequest) -> None:
    asked.cancelled = True
    asked.context = None
