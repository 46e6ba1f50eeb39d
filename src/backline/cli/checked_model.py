"""What `backline config validate` finds in models, by themselves and as steps of ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backline.cli.model_folder import ModelFolder, loaded_model, unloaded_model
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError
from backline.engine.model import Model, ModelState
from backline.repository.repository import FoundModel


@dataclass(slots=True)
class CheckedModel:
    """A model, what is wrong with it, and what is worth a warning. `loaded` is what its load has found, None where it was not loaded."""

    found: FoundModel
    errors: list[str]
    warnings: list[str]
    loaded: Model | None = None


def check_model(path: Path, found: FoundModel, *, load: bool) -> CheckedModel:
    """Checks a model that was found at `path`, by loading it if that is wanted."""
    errors = (
        [found.problem]
        if found.problem
        else [version.problem for version in found.versions if version.problem]
    )
    checked = CheckedModel(found, errors, list(found.warnings))
    if load and not errors:
        try:
            checked.loaded, warnings = loaded_model(ModelFolder(path.absolute(), found, None))
            checked.warnings += warnings
        except BacklineError as error:
            errors.append(error.message)
    return checked


def check_ensembles(checked: Sequence[CheckedModel]) -> None:
    """Adds the errors of ensembles whose models are missing among these, or do not fit, as far as the models are loaded."""
    from backline.lifecycle.composed import check_steps, composed_signature, unanswered_step

    engine = Engine()
    waiting = []
    for one in checked:
        engine.declare(one.found.name)
        if one.found.config.ensemble is not None and not one.errors:
            waiting.append(one)
        else:
            _make_known(engine, one)
    while waiting:  # ensembles of ensembles come behind those that they ask
        reasons = [unanswered_step(engine, one.found.config) for one in waiting]
        if all(reasons):
            for one, reason in zip(waiting, reasons, strict=True):
                one.errors.append(reason)
            return
        for one in (one for one, reason in zip(waiting, reasons, strict=True) if not reason):
            config = one.found.config
            assert config.ensemble is not None, "it is an ensemble"
            try:
                check_steps(engine, config, config.ensemble)
            except BacklineError as error:
                one.errors.append(error.message)
            if one.loaded is not None:
                one.loaded.signature = composed_signature(config)
            _make_known(engine, one)
        waiting = [one for one, reason in zip(waiting, reasons, strict=True) if reason]


def _make_known(engine: Engine, checked: CheckedModel) -> None:
    """Versions that were not loaded are on demand to the engine: they answer, and nothing is known of them yet."""
    found = checked.found
    for version in found.versions:
        model = unloaded_model(found.name, found.config, version.version)
        if checked.errors:
            model.reason = checked.errors[0]
        elif checked.loaded is not None and checked.loaded.version == version.version:
            model = checked.loaded
            model.state = ModelState.READY
        else:
            model.on_demand = True
        engine.add(model)
