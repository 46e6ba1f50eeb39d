"""Changing models over gRPC: RepositoryModelLoad and RepositoryModelUnload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from backline.dialects.open_inference.changes import Changes, caller_name
from backline.dialects.open_inference.load_parameters import dependents_from_message, overrides_from_message
from backline.engine.errors import InvalidArgument, Unsupported
from backline.protos import message
from backline.wire.application import Buffer, UnaryCall

_LOADING = "loading and unloading models by request"


class GrpcRepository:
    """The handlers of the two methods; their responses are empty messages."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def load(self, call: UnaryCall, received: Buffer) -> None:
        asked = _read("RepositoryModelLoadRequest", received)
        control = self._changes.control(_LOADING)
        overrides = overrides_from_message(asked.parameters)
        change = control.load(
            asked.model_name, overrides=overrides, who=caller_name(call.peer, call.metadata)
        )
        self._changes.answer_call(call, change, _empty(call))

    def unload(self, call: UnaryCall, received: Buffer) -> None:
        asked = _read("RepositoryModelUnloadRequest", received)
        control = self._changes.control(_LOADING)
        dependents = dependents_from_message(asked.parameters)
        change = control.unload(
            asked.model_name, dependents=dependents, who=caller_name(call.peer, call.metadata)
        )
        self._changes.answer_call(call, change, _empty(call))


def _read(kind: str, received: Buffer) -> Any:
    try:
        asked = message(f"inference.{kind}").FromString(received)
    except DecodeError:
        raise InvalidArgument(
            f"the message is not an inference.{kind}: it is malformed or cut short"
        ) from None
    if asked.repository_name:
        raise Unsupported("'repository_name' specification is not supported")
    if not asked.model_name:
        raise InvalidArgument("the name of the model is empty: set model_name")
    return asked


def _empty(call: UnaryCall) -> Callable[[None], None]:
    return lambda _: call.reply(b"")
