"""Inference over REST: from a request to the engine, and from its answer to the response."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic_ns

from backline.dialects.answers import hidden_error, respond_error
from backline.dialects.json_data import PIECE
from backline.dialects.off_loop import LargeRequest, OffLoop
from backline.dialects.open_inference.changes import Changes
from backline.dialects.open_inference.grpc_inference import cancel
from backline.dialects.open_inference.outputs import wanted_outputs
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.request_timeout import ENVOY, GRPC, deadline_of
from backline.dialects.open_inference.rest_request import HEADER_LENGTH, Decoded, RequestReader
from backline.dialects.open_inference.rest_response import ResponseWriter
from backline.engine.datatypes import DataType
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, DecoupledModel, Unsupported
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.tensor import Buffer
from backline.engine.ticket import Ticket
from backline.engine.tracing import Trace
from backline.wire.application import Fields, HttpRequest

#: Triton's words to who asks a model for one response that gives any number of them.
_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


class RestInference:
    """The handler of the infer routes."""

    def __init__(self, engine: Engine, changes: Changes) -> None:
        self._engine = engine
        self._changes = changes
        self._read = RequestReader(engine).read
        self._write = ResponseWriter().write
        self._off_loop = OffLoop()

    def infer(self, model: str, version: str, request: HttpRequest) -> None:
        """Submits the request; the answer comes by callback. Raises BacklineError when it is refused at once."""
        headers = request.headers
        tracer = self._engine.tracer
        trace = None if tracer is None else tracer.arrived("HTTP", model, headers, monotonic_ns())
        header_length = headers.get(HEADER_LENGTH)
        deadline = deadline_of(headers) if GRPC in headers or ENVOY in headers else None
        if header_length == b"0" and self._engine.is_unknown(
            model, version
        ):  # a raw request is read by the model's own input
            self._changes.when_known(model, version, request, partial(self.infer, model, version, request))
            return
        try:
            decoded = self._read(request.body, header_length, model, version, on_loop=True)
        except LargeRequest:
            read = partial(self._read, request.body, header_length, model, version)
            self._off_loop.run(read, partial(self._read_done, model, version, request, deadline, trace))
            return
        except BacklineError as error:
            if trace is not None:
                trace.unreadable(error)
            raise
        self._ask(model, version, request, deadline, trace, decoded)

    def _read_done(
        self,
        model: str,
        version: str,
        request: HttpRequest,
        deadline: float | None,
        trace: Trace | None,
        read: asyncio.Future[Decoded],
    ) -> None:
        try:
            self._ask(model, version, request, deadline, trace, read.result())
        except BacklineError as error:
            if trace is not None:
                trace.unreadable(error)
            respond_error(request, error)
        except Exception as error:
            respond_error(request, hidden_error(f"a request for model '{model}'", error))
        finally:
            del (
                read
            )  # it holds the error, whose traceback holds this frame, and with it regions of shared memory

    def _ask(
        self,
        model: str,
        version: str,
        request: HttpRequest,
        deadline: float | None,
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
        ticket = Ticket(asked, self._complete, context=(request, plan), trace=trace)
        request.on_disconnect = partial(cancel, ticket)
        try:
            if deadline is None:
                self._engine.submit(ticket)
            else:
                self._engine.submit_until(ticket, deadline)
        except DecoupledModel:
            raise Unsupported(_DECOUPLED) from None

    def _complete(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        context = ticket.context
        if context is None:
            return
        # It holds the request, whose `on_disconnect` holds the ticket: leave no reference cycle.
        ticket.context = None
        request: HttpRequest
        plan: InferPlan
        request, plan = context
        request.on_disconnect = None
        try:
            if response is None:
                plan.release()
                raise error  # type: ignore[misc]
            if plan.keeps_outputs:
                outputs = response.outputs
            elif plan.is_large(response):
                self._off_loop.run(
                    partial(self._finish, plan, response),
                    partial(self._write_done, ticket.request.model_name, request),
                )
                return
            else:
                outputs = wanted_outputs(self._engine, plan, response)
            if any(
                tensor.data.size > PIECE
                and (tensor.datatype is DataType.BYTES or not plan.is_binary(tensor.name))
                for tensor in outputs
            ):
                self._off_loop.run(
                    partial(self._write, plan, response, outputs),
                    partial(self._write_done, ticket.request.model_name, request),
                )
                return
            fields, body = self._write(plan, response, outputs)
        except DecoupledModel:
            respond_error(request, Unsupported(_DECOUPLED))
        except BacklineError as failure:
            respond_error(request, failure)
        except Exception as failure:
            respond_error(
                request, hidden_error(f"the answer of model '{ticket.request.model_name}'", failure)
            )
        else:
            request.respond(200, fields, body)

    def _finish(self, plan: InferPlan, response: InferResponse) -> tuple[Fields, list[Buffer]]:
        return self._write(plan, response, wanted_outputs(self._engine, plan, response))

    def _write_done(
        self, model: str, request: HttpRequest, written: asyncio.Future[tuple[Fields, list[Buffer]]]
    ) -> None:
        try:
            fields, body = written.result()
        except BacklineError as failure:
            respond_error(request, failure)
        except Exception as failure:
            respond_error(request, hidden_error(f"the answer of model '{model}'", failure))
        else:
            request.respond(200, fields, body)
        finally:
            del written  # as above
