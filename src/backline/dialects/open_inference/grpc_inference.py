"""Unary inference over gRPC: ModelInfer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from time import monotonic_ns

from backline.dialects.answers import hidden_error
from backline.dialects.json_data import PIECE
from backline.dialects.off_loop import LargeRequest, OffLoop
from backline.dialects.open_inference.grpc_request import ModelPlan, RequestReader
from backline.dialects.open_inference.grpc_response import ResponseWriter
from backline.dialects.open_inference.outputs import wanted_outputs
from backline.dialects.rpc_failure import fail
from backline.engine.datatypes import DataType
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, DecoupledModel, Unsupported
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.ticket import Ticket
from backline.engine.tracing import Trace
from backline.wire.application import Buffer, UnaryCall

#: Triton's words to who asks a model for one response that gives any number of them.
_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class GrpcInference:
    """Reads, submits and answers inference messages; also for streams."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read = RequestReader(engine).read
        self._write = ResponseWriter().write
        self._off_loop = OffLoop()

    def request(
        self, received: Buffer, deadline: float | None, *, on_loop: bool = False
    ) -> tuple[InferRequest, ModelPlan]:
        """The request of a message, and its plan; `deadline` is the call's.

        Raises BacklineError, and LargeRequest as RequestReader.read.
        """
        plan, id, inputs = self._read(received, on_loop=on_loop)
        request = InferRequest(
            plan.model_name,
            inputs,
            plan.model_version,
            id,
            plan.outputs,
            plan.parameters,
            plan.priority,
            deadline,
            plan.timeout,
            plan.sequence,
        )
        return request, plan

    def request_off_loop(
        self, received: Buffer, deadline: float | None
    ) -> asyncio.Future[tuple[InferRequest, ModelPlan]]:
        """As `request`, for a message that raised LargeRequest."""
        return self._off_loop.submit(partial(self.request, received, deadline))

    def write(self, plan: ModelPlan, response: InferResponse) -> bytes:
        """The message of a response. Raises BacklineError."""
        outputs = response.outputs if plan.keeps_outputs else wanted_outputs(self._engine, plan, response)
        return self._write(response, outputs)

    def infer(self, call: UnaryCall, received: Buffer) -> None:
        """The handler of ModelInfer: the answer comes by callback. Raises BacklineError when the request is refused at once."""
        began = 0 if self._engine.tracer is None else monotonic_ns()
        try:
            request, plan = self.request(received, call.deadline, on_loop=True)
        except LargeRequest:
            self._off_loop.run(
                partial(self.request, received, call.deadline),
                partial(self._read_done, call, began),
            )
            return
        except BacklineError as failure:
            self.trace_refused(call.metadata, began, failure)
            raise
        self._ask(call, began, request, plan)

    def _read_done(
        self, call: UnaryCall, began: int, read: asyncio.Future[tuple[InferRequest, ModelPlan]]
    ) -> None:
        try:
            self._trace_unread(call, began, read)
            self._ask(call, began, *read.result())
        except BacklineError as failure:
            fail(call, failure)
        except Exception as failure:
            hidden = hidden_error("a large request", failure)
            fail(call, hidden)
        finally:
            del read  # it holds the error, whose traceback holds this frame, and with it the regions

    def trace(self, model: str, metadata: Mapping[bytes, bytes], began: int) -> Trace | None:
        """The trace of a message that was read from `began` on; 0 when nothing was traced then."""
        tracer = self._engine.tracer
        return tracer.arrived("GRPC", model, metadata, began) if began and tracer is not None else None

    def trace_refused(self, metadata: Mapping[bytes, bytes], began: int, error: BacklineError) -> None:
        """As `trace`, of what could not be read."""
        trace = self.trace("", metadata, began)
        if trace is not None:
            trace.unreadable(error)

    def _trace_unread(
        self, call: UnaryCall, began: int, read: asyncio.Future[tuple[InferRequest, ModelPlan]]
    ) -> None:
        error = read.exception()
        if isinstance(error, BacklineError):
            self.trace_refused(call.metadata, began, error)

    def _ask(self, call: UnaryCall, began: int, request: InferRequest, plan: ModelPlan) -> None:
        ticket = Ticket(request, self._complete, context=(call, plan))
        if began:
            ticket.trace = self.trace(request.model_name, call.metadata, began)
        call.on_cancel = partial(cancel, ticket)
        try:
            self._engine.submit(ticket)
        except DecoupledModel:
            raise Unsupported(_DECOUPLED) from None

    def _complete(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        context = ticket.context
        if context is None:
            return
        ticket.context = (
            None  # it holds the call, whose `on_cancel` holds the ticket: leave no reference cycle
        )
        call: UnaryCall
        plan: ModelPlan
        call, plan = context
        call.on_cancel = None
        try:
            if response is None:
                plan.release()
                raise error  # type: ignore[misc]
            if any(
                tensor.datatype is DataType.BYTES and tensor.data.size > PIECE for tensor in response.outputs
            ) or (not plan.keeps_outputs and plan.is_large(response)):
                self._off_loop.run(
                    partial(self.write, plan, response), partial(_write_done, call, ticket.request.model_name)
                )
                return
            message = self.write(plan, response)
        except DecoupledModel:
            call.fail(Unsupported.grpc_code, _DECOUPLED)
        except BacklineError as failure:
            fail(call, failure)
        except Exception as failure:
            hidden = hidden_error(f"the answer of model '{ticket.request.model_name}'", failure)
            fail(call, hidden)
        else:
            call.reply(message)


def _write_done(call: UnaryCall, model: str, written: asyncio.Future[bytes]) -> None:
    try:
        call.reply(written.result())
    except BacklineError as failure:
        fail(call, failure)
    except Exception as failure:
        hidden = hidden_error(f"the answer of model '{model}'", failure)
        fail(call, hidden)
    finally:
        del written  # as above


def cancel(ticket: Ticket) -> None:
    """Cancels a request whose caller is gone."""
    ticket.context = None
    ticket.cancel()
