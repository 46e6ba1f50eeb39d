"""Unary inference over gRPC: ModelInfer."""

from __future__ import annotations

from dataclasses import replace

from backline.dialects.exchange import GRPC, UnaryInference
from backline.dialects.forwarding import ForwardPattern
from backline.dialects.off_loop import OffLoop
from backline.dialects.open_inference.grpc.messages import GrpcReader, GrpcWriter
from backline.engine.engine import Engine
from backline.wire.application import Buffer, UnaryCall

#: Triton's error text for decoupled models.
_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class GrpcInference:
    """The handler of ModelInfer. ModelStreamInfer shares its reader, writer and thread."""

    def __init__(self, engine: Engine, forward: ForwardPattern | None = None) -> None:
        """`forward` says which metadata models see as parameters."""
        self.forward = forward
        writer = GrpcWriter(engine)
        self.write = writer.write
        self.read = GrpcReader(engine).read
        self.off_loop = OffLoop()
        carrier = replace(GRPC, forward=forward)
        self._take = UnaryInference(
            engine, carrier, self.read, writer.write_parts, self.off_loop, decoupled=_DECOUPLED
        ).take

    def infer(self, call: UnaryCall, received: Buffer) -> None:
        """Submits a request; the response follows later. Raises BacklineError if it is refused at once."""
        self._take(call, received, call.metadata, "", "", call.deadline)
