"""The statistics extension: plain data in the shape of inference.ModelStatistics, more detailed over REST."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backline.dialects.open_inference.metadata import MaySee
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState
from backline.engine.statistics import FAILURES, Duration, ModelStatistics
from backline_client.values.errors import NotFound


def model_statistics(
    engine: Engine, name: str, version: str, may_see: MaySee, *, details: bool = False
) -> Iterator[dict[str, Any]]:
    """Returns the counters of a version; of all versions if `version` is empty; or, if `name` is empty too,
    of all models that the caller may see.

    Times are in ns. The iterator is lazy, because reading the counters of hundreds of models at once would
    block the event loop for too long. Versions that are not ready and have run nothing are left out.
    `details` adds what the gRPC message has no field for: `failure_stats` (see FAILURES), and `call_stats`
    for models that call others. Raises NotFound for an unknown model or version, for a `version` without a
    `name`, and for a named model whose requested versions are all unavailable and have run nothing.
    """
    if name:
        try:
            asked = engine.find(name, version)
        except NotFound as error:
            if not error.message.startswith("Request for unknown model"):
                raise  # the version is not a number
            what = (
                f"version is not available for model '{name}'"
                if engine.is_known(name)
                else f"'{name}' is not available"
            )
            raise NotFound(f"requested model {what}: {error.message}") from None
        models = [asked] if version else [model for model in engine.models() if model.name == name]
    elif version:
        raise NotFound(f"statistics of version {version} need the name of a model")
    else:
        engine.check_live()
        models = [model for model in engine.models() if may_see(model.name)]
    shown = [model for model in models if model.state is ModelState.READY or model.statistics.execution_count]
    if name and not shown and all(model.state is ModelState.UNAVAILABLE for model in models):
        why = f": {models[-1].reason}" if models[-1].reason else ""
        raise NotFound(f"requested model '{name}' is not available{why}")
    return (_statistics(model) | (_details(model.statistics) if details else {}) for model in shown)


def _statistics(model: Model) -> dict[str, Any]:
    counters = model.statistics
    compute_infer, compute_output = _duration(counters.compute_infer), _duration(counters.compute_output)
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counters.last_inference_ms,
        "inference_count": counters.inference_count,
        "execution_count": counters.execution_count,
        "inference_stats": {
            "success": _duration(counters.success),
            "fail": _failed(counters),
            "queue": _duration(counters.queue),
            "compute_input": _duration(counters.compute_input),
            "compute_infer": compute_infer,
            "compute_output": compute_output,
            "cache_hit": _duration(counters.cache_hit),
            "cache_miss": _duration(counters.cache_miss),
        },
        "response_stats": _response_statistics(counters),
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for size, batch in sorted(counters.batches.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": model.memory_bytes}]
        if model.memory_bytes
        else [],
    }


def _details(counters: ModelStatistics) -> dict[str, Any]:
    """Returns the number of failures by reason and, if there are any, the counters of calls to other models
    by the name of the model.
    """
    called = {
        name: {
            "success": _duration(calls.success),
            "fail": _duration(calls.fail),
            "cancel": _duration(calls.cancel),
        }
        for name, calls in sorted(counters.calls.items())
    }
    failures = {"failure_stats": {reason: count(counters) for reason, count in FAILURES.items()}}
    return failures | {"call_stats": called} if called else failures


def _response_statistics(counters: ModelStatistics) -> dict[str, Any]:
    """Returns counters by the index of a response among the responses to its request. Only decoupled models
    have an index above 0.
    """
    if counters.responses is None:
        return {
            "0": {
                "compute_infer": _duration(counters.compute_infer),
                "compute_output": _duration(counters.compute_output),
                "success": _duration(counters.success),
                "fail": _duration(counters.fail),
                "empty_response": {"count": 0, "ns": 0},
                "cancel": {"count": counters.cancelled, "ns": 0},
            }
        }
    return {
        str(index): {
            "compute_infer": _duration(one.compute_infer),
            "compute_output": _duration(one.compute_output),
            "success": _duration(one.success),
            "fail": _duration(one.fail),
            "empty_response": _duration(one.empty),
            "cancel": _duration(one.cancel),
        }
        for index, one in enumerate(counters.responses.counters)
    }


def _failed(counters: ModelStatistics) -> dict[str, int]:
    """Counts failures as Triton does: includes cancelled and timed-out requests, but not requests that a
    queue refused.
    """
    failed, given_up = counters.fail, counters.given_up
    return {"count": failed.count + given_up.count, "ns": failed.ns + given_up.ns}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
