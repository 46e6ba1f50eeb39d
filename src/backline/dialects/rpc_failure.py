"""How gRPC calls fail: with the code and message of an error of the engine, and without a word of what only the log should tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import ceil

from backline.dialects.answers import hidden_error
from backline.engine.errors import BacklineError
from backline.wire.application import Buffer, RpcError, UnaryCall

UnaryHandler = Callable[[UnaryCall, Buffer], None]


def fail(call: UnaryCall, error: BacklineError) -> None:
    """Ends a call with an error; where trying again makes sense it says when, as gRPC's clients that retry by themselves understand it."""
    if error.retry_after is None:
        call.fail(error.grpc_code, error.public_message)
    else:
        call.fail(
            error.grpc_code,
            error.public_message,
            ((b"grpc-retry-pushback-ms", b"%d" % max(1, ceil(error.retry_after * 1000))),),
        )


def guarded(handler: UnaryHandler) -> UnaryHandler:
    """A handler that never raises: errors end the call."""

    @wraps(handler)
    def answer(call: UnaryCall, received: Buffer) -> None:
        try:
            handler(call, received)
        except RpcError as error:
            call.fail(error.code, error.message)
        except BacklineError as error:
            fail(call, error)
        except Exception as error:
            hidden = hidden_error("a gRPC call", error)
            call.fail(hidden.grpc_code, hidden.message)

    return answer
