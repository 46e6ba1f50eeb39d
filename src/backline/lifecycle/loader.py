"""One load: from a model file to a model that can be served, and the decision how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from backline.backends.backend import LoadedModel
from backline.backends.registry import choose
from backline.engine.model_config import Lane, ModelConfig
from backline.engine.signature import Signature
from backline.lifecycle.batch_probe import BatchProbe, probe_batching
from backline.lifecycle.cores import usable_cores
from backline.lifecycle.run_time import LARGEST_BATCH, RunPlan, measure, plan


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, and how it is to be served.

    `max_batch_size` is what requests may ask for (0: no dimension is a batch), `batch_limit` how many items the scheduler joins.
    """

    model: LoadedModel
    backend: str
    platform: str
    signature: Signature
    max_batch_size: int
    batch_limit: int
    lane: Lane
    instances: int
    reason: str
    warnings: tuple[str, ...] = ()


def load(path: Path, config: ModelConfig) -> Loaded:
    """Loads a model file, proves whether it can be batched where the configuration does not say, and measures how it runs best.

    Takes as long as it takes: to be called on a thread. Raises BacklineError with the reason when the model cannot be served.
    """
    backend = choose(config, path)
    model = backend.load(path, config)
    warnings = model.warnings
    max_batch_size, reason = 0, "max_batch_size of the configuration is 0"
    if config.max_batch_size != 0:
        probe = probe_batching(model)
        reason = probe.reason
        if config.max_batch_size is None:
            max_batch_size = LARGEST_BATCH if probe.batched else 0
        else:
            max_batch_size = config.max_batch_size
            if not probe.batched:
                warnings += (_batched_against_proof(config, probe),)
    chosen = _plan(model, config, max_batch_size)
    return Loaded(
        model,
        backend.name,
        backend.platform,
        _with_labels(model.signature, config),
        max_batch_size,
        max_batch_size if config.dynamic_batching else chosen.batch_limit,
        chosen.lane,
        chosen.instances,
        f"{reason}; {chosen.reason}",
        warnings,
    )


def _plan(model: LoadedModel, config: ModelConfig, max_batch_size: int) -> RunPlan:
    return plan(
        measure(model, max_batch_size),
        cores=usable_cores(),
        threads_per_run=model.threads_per_run,
        lane=config.lane,
        instances=config.instance_count,
        max_batch=max_batch_size,
    )


def _batched_against_proof(config: ModelConfig, probe: BatchProbe) -> str:
    return (
        f"{config.source or config.name}: max_batch_size is {config.max_batch_size}, but joining requests changes answers: {probe.reason}."
        " Set max_batch_size to 0 unless you know better"
    )


def _with_labels(signature: Signature, config: ModelConfig) -> Signature:
    """The signature, with the names of classes that the configuration gives to outputs."""
    labels = {spec.name: spec.labels for spec in config.outputs if spec.labels}
    if not labels:
        return signature
    return replace(signature, outputs=tuple(replace(spec, labels=labels.get(spec.name, ())) for spec in signature.outputs))
