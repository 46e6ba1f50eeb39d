"""The statistics extension. Plain data in the shape of inference.ModelStatistics, the same for REST and gRPC."""

from __future__ import annotations

from typing import Any

from backline.engine.engine import Engine, Model, ModelState
from backline.engine.errors import NotFound
from backline.engine.statistics import Duration


def model_statistics(engine: Engine, name: str, version: str) -> dict[str, Any]:
    """Counters of one version, of all versions of a model (empty `version`), or of all models (empty `name`). Times in nanoseconds.

    Versions that were never ready have none. Raises NotFound for an unknown model or version.
    """
    if name:
        asked = engine.find(name, version)
        models = [asked] if version else [model for model in engine.models() if model.name == name]
    elif version:
        raise NotFound(f"statistics of version {version} were asked for without the name of a model")
    else:
        models = list(engine.models())
    return {"model_stats": [_statistics(model) for model in models if model.state is ModelState.READY or model.statistics.execution_count]}


def _statistics(model: Model) -> dict[str, Any]:
    counters = model.statistics
    nothing = {"count": 0, "ns": 0}
    compute_infer, compute_output = _duration(counters.compute_infer), _duration(counters.compute_output)
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counters.last_inference_ms,
        "inference_count": counters.inference_count,
        "execution_count": counters.execution_count,
        "inference_stats": {
            "success": _duration(counters.success),
            "fail": _duration(counters.fail),
            "queue": _duration(counters.queue),
            "compute_input": _duration(counters.compute_input),
            "compute_infer": compute_infer,
            "compute_output": compute_output,
            "cache_hit": _duration(counters.cache_hit),
            "cache_miss": _duration(counters.cache_miss),
        },
        # A model with one response a request: all are responses number 0.
        "response_stats": {
            "0": {
                "compute_infer": compute_infer,
                "compute_output": compute_output,
                "success": _duration(counters.success),
                "fail": _duration(counters.fail),
                "empty_response": nothing,
                "cancel": {"count": counters.cancelled, "ns": 0},
            }
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for size, batch in sorted(counters.batches.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": model.memory_bytes}] if model.memory_bytes else [],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
