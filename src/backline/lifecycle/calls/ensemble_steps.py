"""An ensemble and the models of its steps: whether they answer, whether they fit each other, what its queue has to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from backline.engine.engine import Engine
from backline.engine.ensemble import Ensemble
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.model import Model
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature, TensorSpec
from backline.engine.tensor import Shape
from backline.lifecycle.calls.call_graph import Node, Wait
from backline.schedule.ensembles.graph import StepModel, origins


def composed_signature(config: ModelConfig) -> Signature:
    """Inputs and outputs with full shapes, as the configuration names them."""
    first: Shape = (-1,) if config.max_batch_size else ()

    def full(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(spec.name, spec.datatype, (*first, *spec.shape), spec.optional, spec.labels)
            for spec in specs
        )

    return Signature(full(config.inputs), full(config.outputs))


def unanswered_step(engine: Engine, config: ModelConfig) -> str:
    """Why an ensemble cannot answer: a circle, or the first of its steps' models that does not answer; empty when all do.

    The words are Triton's, which finds no circles.
    """
    assert config.ensemble is not None, "it is an ensemble"
    circle = _circle(engine, config.name, config.ensemble, set())
    if circle:
        way = " -> ".join(f"'{name}'" for name in (config.name, *circle))
        return f"ensemble '{config.name}' would wait for itself, as its steps go round in a circle: {way}"
    names = engine.names()
    missing = sorted(config.ensemble.models - set(names))
    if missing:
        near = get_close_matches(missing[0], names, 1)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        return f"ensemble {config.name} contains models that are not available or ambiguous: {', '.join(missing)}{hint}"
    for step in config.ensemble.steps:
        try:
            answers = (
                engine.find(step.model, step.version).answers
                if step.version
                else bool(engine.served_versions(step.model))
            )
        except BacklineError:
            answers = False
        if not answers and step.version:
            return f"ensemble '{config.name}' depends on '{step.model}' whose required version {step.version} is not loaded."
        if not answers:
            return f"ensemble '{config.name}' depends on '{step.model}' which has no loaded version. {_why(engine, step.model)}".rstrip()
    return ""


def _circle(engine: Engine, name: str, ensemble: Ensemble, seen: set[str]) -> list[str]:
    """The ensembles on the way from the steps of one back to `name`, all of whose versions are ensembles; empty where there is no way."""
    for step in ensemble.steps:
        if step.model == name:
            return [name]
        try:
            asked = engine.find(step.model, step.version).config.ensemble
        except BacklineError:
            continue
        if asked is None or step.model in seen:
            continue
        seen.add(step.model)
        way = _circle(engine, name, asked, seen)
        if way:
            return [step.model, *way]
    return []


def _why(engine: Engine, name: str) -> str:
    reasons = [
        f"Version {model.version}: {model.reason}"
        for model in engine.models()
        if model.name == name and model.reason
    ]
    return reasons[-1] if reasons else ""


def check_steps(engine: Engine, config: ModelConfig, ensemble: Ensemble) -> None:
    """Raises InvalidArgument where steps and their models do not fit: names, datatypes, shapes, batch sizes. The words are Triton's.

    All of its models answer. Of one that was never loaded, as it is on demand, nothing is known yet: its requests are checked when they
    come.
    """
    name = config.name
    signature = composed_signature(config)
    seen = {
        spec.name: (spec, name, bool(config.max_batch_size))
        for spec in (*signature.inputs, *signature.outputs)
    }
    for step in ensemble.steps:
        model = _model(engine, step.model, step.version)
        if model.on_demand and not model.signature.outputs:
            continue
        limited = model.max_batch_size and not model.config.split_large_batches
        if limited and model.max_batch_size < (config.max_batch_size or 0):
            raise InvalidArgument(
                f"ensemble {name} allows maximum batch size {config.max_batch_size}, but it contains model {step.model} which only allows"
                f" maximum batch size to be {model.max_batch_size}"
            )
        inputs = {spec.name: spec for spec in model.signature.inputs}
        outputs = {spec.name: spec for spec in model.signature.outputs}
        _check_tensors(name, model, step.inputs, inputs, seen, "to non-existing input")
        _check_tensors(name, model, step.outputs, outputs, seen, "from non-existing output")
        missing = [
            spec.name for spec in inputs.values() if not spec.optional and spec.name not in step.inputs
        ]
        if missing:
            raise InvalidArgument(
                f"in ensemble {name}, no ensemble tensor is mapping to required input {missing[0]} in model {step.model}"
            )
    _check_origins(engine, config, ensemble)


def _check_origins(engine: Engine, config: ModelConfig, ensemble: Ensemble) -> None:
    """Raises InvalidArgument where tensors meet that stem from different decoupled steps: as many of each there need not be."""
    decoupled = [
        index
        for index, step in enumerate(ensemble.steps)
        if _model(engine, step.model, step.version).decoupled
    ]
    try:
        found = origins(ensemble, decoupled)
    except InvalidArgument as error:
        raise InvalidArgument(f"in ensemble {config.name}, {error.message}") from None
    if len({found.get(output.name, ()) for output in config.outputs}) > 1:
        reason = f"step of model '{config.name}' receives inputs originated from different decoupled models"
        raise InvalidArgument(f"in ensemble {config.name}, {reason}")


def step_models(engine: Engine, ensemble: Ensemble) -> tuple[StepModel, ...]:
    """What is known of the models of the steps, which all answer."""
    return tuple(map(_step_model, (_model(engine, step.model, step.version) for step in ensemble.steps)))


def asked_models(engine: Engine, ensemble: Ensemble) -> tuple[Model, ...]:
    """The versions that its steps ask now, and those that ensembles among them ask; all answer."""
    asked: list[Model] = []
    for step in ensemble.steps:
        model = _model(engine, step.model, step.version)
        asked.append(model)
        if model.config.ensemble is not None:
            asked += asked_models(engine, model.config.ensemble)
    return tuple(asked)


def _step_model(model: Model) -> StepModel:
    ranks = {spec.name: len(spec.shape) for spec in model.signature.inputs}
    return StepModel(model.decoupled, model.max_batch_size > 0, ranks)


def waits_for_steps(engine: Engine, model: Model) -> list[Wait]:
    """For whom an ensemble waits, also those among its steps; empty for another model."""
    ensemble = model.config.ensemble
    if ensemble is None:
        return []
    waits = []
    for step in ensemble.steps:
        awaited = _model(engine, step.model, step.version)
        waits += [(node(model), node(awaited)), *waits_for_steps(engine, awaited)]
    return list(dict.fromkeys(waits))


def waits_of_decoupled_steps(engine: Engine, ensemble: Ensemble) -> list[Wait]:
    """A decoupled step stands still, in the midst of its run, while those behind it have enough of its responses."""
    models = [_model(engine, step.model, step.version) for step in ensemble.steps]
    found = origins(ensemble, [index for index, model in enumerate(models) if model.decoupled])
    waits: list[Wait] = []
    for step, awaited in zip(ensemble.steps, models, strict=True):
        before = {index for tensor in step.inputs.values() for index in found.get(tensor, ())}
        for waiting in (one for index in sorted(before) for one in _decoupled_in(engine, models[index])):
            waits += [(waiting, node(awaited)), *waits_for_steps(engine, awaited)]
    return list(dict.fromkeys(waits))


def _decoupled_in(engine: Engine, model: Model) -> list[Node]:
    """Who gives the responses of a decoupled model: of an ensemble, the decoupled ones among its steps."""
    ensemble = model.config.ensemble
    if ensemble is None:
        return [node(model)] if model.decoupled else []
    return [
        one
        for step in ensemble.steps
        for one in _decoupled_in(engine, _model(engine, step.model, step.version))
    ]


def node(model: Model) -> Node:
    """As which a model is told of those that wait."""
    return model.name, model.version


def _model(engine: Engine, name: str, version: str) -> Model:
    return engine.find_ready(name, version or engine.served_versions(name)[-1])


_Seen = dict[str, tuple[TensorSpec, str, bool]]


def _check_tensors(
    ensemble: str,
    model: Model,
    mapped: Mapping[str, str],
    specs: Mapping[str, TensorSpec],
    seen: _Seen,
    what: str,
) -> None:
    for name, tensor in mapped.items():
        spec = specs.get(name)
        if spec is None:
            direction = f"mapping {what}" if what.startswith("to") else f"mapped {what}"
            raise InvalidArgument(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is {direction} {name} in model {model.name}"
            )
        other, inferred, batched = seen.setdefault(tensor, (spec, model.name, model.max_batch_size > 0))
        where = f"in ensemble {ensemble}, ensemble tensor {tensor}: inconsistent"
        if other.datatype is not spec.datatype:
            raise InvalidArgument(
                f"{where} data type: {other.datatype.config_name} is inferred from model {inferred} while"
                f" {spec.datatype.config_name} is inferred from model {model.name}"
            )
        plain, own = (
            shape[1:] if batch else shape
            for shape, batch in ((other.shape, batched), (spec.shape, model.max_batch_size > 0))
        )
        if not _fits(other.shape, spec.shape) and not _fits(plain, own):
            raise InvalidArgument(
                f"{where} shape: {_dims(other.shape)} is inferred from model {inferred} while {_dims(spec.shape)} is inferred from model"
                f" {model.name}"
            )


def _fits(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _dims(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
