"""The generate extension and inference as a stream of events: `generate`, `generate_stream`, `infer_stream`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import TypeAlias

from backline.dialects.answers import JSON, hidden_error, respond_error
from backline.dialects.off_loop import LARGE, OffLoop
from backline.dialects.open_inference.changes import Changes
from backline.dialects.open_inference.generate_json import read_generate, write_generate
from backline.dialects.open_inference.outputs import wanted_outputs
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.request_timeout import deadline_of
from backline.dialects.open_inference.rest_request import HEADER_LENGTH, Decoded, RequestReader
from backline.dialects.open_inference.rest_response import ResponseWriter
from backline.dialects.open_inference.sse import EventStreams, encoded
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, Internal, InvalidArgument
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.responses import Responses
from backline.engine.tracing import Trace
from backline.wire.application import HttpRequest

Read: TypeAlias = Callable[[], Decoded]
Answer: TypeAlias = Callable[[InferPlan, Responses], None]

NOT_ONE = "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"


class Generate:
    """The handlers of the routes."""

    def __init__(self, engine: Engine, changes: Changes) -> None:
        self._engine = engine
        self._changes = changes
        self._read_infer = RequestReader(engine).read
        self._write_infer = ResponseWriter().write
        self._off_loop = OffLoop()
        self._streams = EventStreams(self._off_loop)

    def generate(self, model: str, version: str, request: HttpRequest) -> None:
        """Answers with the model's only response; a model that gives none or several is an error."""

        def answer(_: InferPlan, responses: Responses) -> None:
            self._streams.run(request, model, responses, _answer_with_one(request, responses, self._off_loop))

        self._changes.when_known(
            model, version, request, partial(self._generate, model, version, request, answer)
        )

    def generate_stream(self, model: str, version: str, request: HttpRequest) -> None:
        """Answers with an event for each response."""

        def answer(_: InferPlan, responses: Responses) -> None:
            self._streams.answer(request, model, responses, write_generate)

        self._changes.when_known(
            model, version, request, partial(self._generate, model, version, request, answer)
        )

    def infer_stream(self, model: str, version: str, request: HttpRequest) -> None:
        """A request as those of `infer`; answers with an event for each response, which is what `infer` answers in JSON."""

        def answer(plan: InferPlan, responses: Responses) -> None:
            self._streams.answer(request, model, responses, partial(self._infer_event, plan))

        read = partial(self._read_infer, request.body, request.headers.get(HEADER_LENGTH), model, version)
        self._changes.when_known(
            model, version, request, partial(self._submit, model, version, request, read, answer)
        )

    def _generate(self, model: str, version: str, request: HttpRequest, answer: Answer) -> None:
        served = self._engine.find_ready(model, version)
        self._submit(model, version, request, partial(read_generate, request.body, served), answer)

    def _submit(self, model: str, version: str, request: HttpRequest, read: Read, answer: Answer) -> None:
        """Reads and submits a request, a large one beside the event loop. Raises BacklineError when it is refused at once."""
        deadline = deadline_of(request.headers)
        tracer = self._engine.tracer
        trace = None if tracer is None else tracer.arrived("HTTP", model, request.headers, monotonic_ns())
        if len(request.body) > LARGE:
            self._off_loop.run(
                read, partial(self._read_done, model, version, request, deadline, answer, trace)
            )
            return
        try:
            self._ask(model, version, deadline, answer, trace, read())
        except BacklineError as error:
            if trace is not None:
                trace.unreadable(error)
            raise

    def _read_done(
        self,
        model: str,
        version: str,
        request: HttpRequest,
        deadline: float | None,
        answer: Answer,
        trace: Trace | None,
        read: asyncio.Future[Decoded],
    ) -> None:
        try:
            self._ask(model, version, deadline, answer, trace, read.result())
        except BacklineError as error:
            if trace is not None:
                trace.unreadable(error)
            respond_error(request, error)
        except Exception as error:
            respond_error(request, hidden_error(f"a request for model '{model}'", error))
        finally:
            del read  # it holds the error, whose traceback holds this frame, and with it the body

    def _ask(
        self,
        model: str,
        version: str,
        deadline: float | None,
        answer: Answer,
        trace: Trace | None,
        decoded: Decoded,
    ) -> None:
        plan, id, inputs = decoded
        asked = InferRequest(
            model,
            inputs,
            version,
            id,
            plan.outputs,
            plan.parameters,
            plan.priority,
            None,
            plan.timeout,
            plan.sequence,
        )
        answer(plan, self._engine.stream(asked, deadline, trace=trace))

    def _infer_event(self, plan: InferPlan, response: InferResponse) -> bytes:
        outputs = response.outputs if plan.keeps_outputs else wanted_outputs(self._engine, plan, response)
        if any(plan.is_binary(tensor.name) for tensor in outputs):
            raise InvalidArgument(
                "an event has no binary data: ask for the outputs as JSON, or use gRPC's ModelStreamInfer"
            )
        _, (body,) = self._write_infer(plan, response, outputs)
        return bytes(body)


async def _answer_with_one(request: HttpRequest, responses: Responses, off_loop: OffLoop) -> None:
    try:
        response = await anext(responses, None)
        if response is None or await anext(responses, None) is not None:
            raise Internal(NOT_ONE)
        body = await encoded(off_loop, write_generate, response)
    except BacklineError as error:
        respond_error(request, error)
    else:
        request.respond(200, [(b"content-type", JSON)], [body])
