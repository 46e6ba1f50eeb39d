"""The gRPC service through which KEDA asks how many servers the load needs.

https://keda.sh/docs/latest/concepts/external-scalers/
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from backline.access.scope import Scope
from backline.dialects.answers import guarded
from backline.dialects.documents import read_message
from backline.engine.errors import InvalidArgument
from backline.observe.scaling import ScalingSignal
from backline.protos import message
from backline.wire.application import Buffer, RpcError, StreamCall, StreamMethod, UnaryCall, UnaryMethod

EXTERNAL_SCALER = "externalscaler.ExternalScaler"
#: The metric's name, the same as on the metrics page.
METRIC = "backline_desired_replicas"
#: Seconds between two checks of whether the server is active, for callers of StreamIsActive.
_LOOK = 5.0


class ExternalScaler:
    """Reports the scaling signal of this server: the factor by which the number of servers should change.

    With `metricType: Value` in the trigger, KEDA multiplies the number of servers by this factor. The result
    is right for the whole fleet as long as all servers have about the same load.
    """

    def __init__(self, signal: Callable[[], ScalingSignal]) -> None:
        self._signal = signal

    def methods(self) -> dict[bytes, UnaryMethod | StreamMethod]:
        unary = {
            "IsActive": self._is_active,
            "GetMetricSpec": self._spec,
            "GetMetrics": self._metrics,
        }
        return {
            **{
                f"/{EXTERNAL_SCALER}/{name}".encode(): UnaryMethod(guarded(handler), Scope.METRICS)
                for name, handler in unary.items()
            },
            f"/{EXTERNAL_SCALER}/StreamIsActive".encode(): StreamMethod(self._follow, Scope.METRICS),
        }

    def _is_active(self, call: UnaryCall, received: Buffer) -> None:
        read_message("externalscaler.ScaledObjectRef", received)
        call.reply(self._activity())

    def _spec(self, call: UnaryCall, received: Buffer) -> None:
        read_message("externalscaler.ScaledObjectRef", received)
        answer = message("externalscaler.GetMetricSpecResponse")()
        answer.metricSpecs.add(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        call.reply(answer.SerializeToString())

    def _metrics(self, call: UnaryCall, received: Buffer) -> None:
        asked = read_message("externalscaler.GetMetricsRequest", received)
        desired = self._signal().desired_replicas
        answer = message("externalscaler.GetMetricsResponse")()
        answer.metricValues.add(
            metricName=asked.metricName or METRIC, metricValue=math.ceil(desired), metricValueFloat=desired
        )
        call.reply(answer.SerializeToString())

    async def _follow(self, call: StreamCall) -> None:
        """Sends whether the server is active, now and at every change."""
        received = await call.receive()
        if received is None:
            raise RpcError(InvalidArgument.grpc_code, "StreamIsActive needs a request message")
        last = None
        while True:
            activity = self._activity()
            if activity != last:
                last = activity
                await call.send(activity)
            await asyncio.sleep(_LOOK)

    def _activity(self) -> bytes:
        """Encodes whether requests were in flight within the signal's window."""
        active = message("externalscaler.IsActiveResponse")(result=self._signal().utilisation > 0)
        encoded: bytes = active.SerializeToString()
        return encoded
