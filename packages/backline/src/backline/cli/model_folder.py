"""Reads and checks models on local disk, without a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from backline.backends.backend import FileCheck, LoadOptions
from backline.backends.registry import FORMATS, PLATFORMS, choose
from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Placement
from backline.lifecycle.wanted import listed, none_selected, select
from backline.repository import configuration
from backline.repository.configuration import files, override
from backline.repository.configuration.document import Document
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundModel, FoundVersion
from backline.repository.walk import walk
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.spelling import nearest


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on disk, as a scan of its path finds it. `document` is the configuration as written in its file
    or, if `overridden`, in the JSON of a load request; None if there is no such file.
    """

    path: Path
    found: FoundModel
    document: Document | None
    overridden: bool = False

    @property
    def version(self) -> FoundVersion | None:
        """The newest version that can be loaded."""
        return next((version for version in reversed(self.found.versions) if version.path is not None), None)

    @property
    def model_file(self) -> Path | None:
        version = self.version
        if version is None or version.path is None:
            return None
        return self.path / version.path if self.path.is_dir() else self.path


def open_models(path: Path, config_name: str = "") -> list[FoundModel]:
    """Returns the models at a path, which is a repository, or the folder or file of a model.

    Raises BacklineError if the path cannot be read.
    """
    return LocalRepository(
        path, formats=FORMATS, configs=configuration.ConfigFiles(config_name, platforms=PLATFORMS)
    ).scan_now()


def similar_path(missing: Path) -> str:
    """Returns a hint for an error about a missing path: an entry of its folder with a similar name, or ""."""
    above = missing.parent
    near = nearest(missing.name, [one.name for one in above.iterdir()] if above.is_dir() else [], 1)
    return f". Did you mean '{above / near[0]}'?" if near else ""


def open_model(path: Path, config_name: str = "", overriding: Path | None = None) -> ModelFolder:
    """Returns the model at a path. The JSON in the file `overriding`, if given, replaces the configuration.

    Raises BacklineError if there is no such model, or its configuration is invalid.
    """
    path = path.absolute()
    found = _only(path, config_name)
    listing = walk(path) if path.is_dir() else walk(path.parent)
    if overriding is not None:
        text = read_text(overriding)
        document = override.parse(text)
        found = replace(found, problem="", config=override.read_override(text, found.name, listing))
        return ModelFolder(path, found, document, overridden=True)
    if found.problem:
        raise InvalidArgument(found.problem)
    file = configuration.find(listing, config_name) if path.is_dir() else None
    return ModelFolder(path, found, None if file is None else files.parse(listing, file))


def read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"'{file}' is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _only(path: Path, config_name: str) -> FoundModel:
    models = open_models(path, config_name)
    if len(models) == 1 and not (models[0].folder and path.is_dir()):
        return models[0]
    names = ", ".join(f"'{path / model.name}'" for model in models[:8]) or "none"
    raise InvalidArgument(f"'{path}' is a repository, not a model; name the folder of a model: {names}")


def loaded_model(folder: ModelFolder, *, triton_defaults: bool = False) -> tuple[Model, tuple[str, ...]]:
    """Loads and measures a model as a server does. Returns the model and the warnings from the load.

    With `triton_defaults`, loads the model as `backline tritonserver` does. An ensemble is not loaded,
    because its configuration describes it completely. Raises BacklineError if the model cannot be served.
    """
    if folder.found.config.ensemble is not None:
        return unloaded_model(
            folder.found.name,
            folder.found.config,
            folder.version.version if folder.version is not None else "",
        ), ()
    # Imported here, because the loader imports runtimes.
    from backline.lifecycle.loading.loader import NeedsWorkers, load
    from backline.lifecycle.loading.queueing import scheduling_text
    from backline.lifecycle.loading.version_load import as_in_triton, request_check
    from backline.lifecycle.loading.warm_up import fitting_request, warm_up_samples

    version, file = folder.version, folder.model_file
    if version is None or file is None:
        problems = [found.problem for found in folder.found.versions if found.problem]
        raise InvalidArgument(
            problems[-1]
            if problems
            else f"'{folder.path}' has no version that can be loaded; put the model's file into a folder for"
            " the version, such as 1/model.onnx"
        )
    config = folder.found.config
    if triton_defaults:
        config = as_in_triton(config, file)
    try:
        loaded = load(file, config, options=LoadOptions(may_run_code=True))
    except NeedsWorkers:
        return asyncio.run(_served_model(folder)), ()
    version_folder = file if file.is_dir() else file.parent
    batched, model_folder = loaded.max_batch_size > 0, version_folder.parent
    loaded.states.prepare(batched=batched, model_folder=model_folder)
    for sample in warm_up_samples(
        config, batched=batched, version_folder=version_folder, model_folder=model_folder
    ):
        fitting_request(config.name, request_check(config, loaded), sample)
    model = unloaded_model(folder.found.name, folder.found.config, version.version)
    model.backend, model.platform = loaded.backend, loaded.platform
    model.signature = loaded.signature
    model.max_batch_size = loaded.max_batch_size
    model.placement = Placement(
        loaded.lane, loaded.instances, loaded.max_batch_size, loaded.reason, loaded.placed
    )
    model.scheduling = scheduling_text(
        config, loaded.batch_limit, loaded.measured.times.seconds, decoupled=config.decoupled
    )
    loaded.close()
    return model, loaded.warnings


async def _served_model(folder: ModelFolder) -> Model:
    """Returns a model that needs worker processes, after loading it in a temporary embedded engine."""
    from backline.embedded.embedded import Embedded
    from backline.lifecycle.options import LifecycleOptions

    if folder.overridden:
        raise InvalidArgument(
            f"'{folder.path}' runs in a worker process, so it cannot be inspected with --override: add"
            " --no-inspect, or load the model with this configuration on a running server"
        )
    logging.getLogger("backline").setLevel(logging.CRITICAL)  # the caller reports all errors
    with TemporaryDirectory() as state:
        # This process has no clients that would suffer from a crash of the model's runtime.
        options = LifecycleOptions(state_folder=Path(state), isolate="never")
        embedded = Embedded([folder.path / folder.found.folder], options)
        try:
            await embedded.start()
            (model, *_) = [*embedded.engine.models()]
            reason = "" if model.state is ModelState.READY else model.reason
        finally:
            await embedded.stop()
    if reason:
        raise InvalidArgument(reason)
    return model


def unloaded_model(name: str, config: ModelConfig, version: str = "") -> Model:
    """Returns the model that a configuration describes, without loading it."""
    model = Model(name, version, config)
    model.max_batch_size = config.max_batch_size or 0
    return model


@dataclass(slots=True)
class CheckedModel:
    """A model, with the errors and warnings that a check found. `loaded` is None if it was not loaded."""

    found: FoundModel
    errors: list[str]
    warnings: list[str]
    loaded: Model | None = None


def check_model(path: Path, found: FoundModel, *, load: bool, triton_defaults: bool = False) -> CheckedModel:
    """Checks the configuration and the files of a model at `path`. If `load` is true, also loads the model,
    as `backline tritonserver` does if `triton_defaults` is true, otherwise as `backline serve` does.
    """
    if found.problem:
        errors = [found.problem]
    else:
        errors = [problem for version in found.versions for problem in _problems(path, found, version)]
        errors += [*_label_problems(found), *_policy_problems(path, found)]
    checked = CheckedModel(found, errors, list(found.warnings))
    if load and not errors:
        try:
            checked.loaded, warnings = loaded_model(
                ModelFolder(path.absolute(), found, None), triton_defaults=triton_defaults
            )
            checked.warnings += warnings
        except BacklineError as error:
            errors.append(error.message)
    return checked


def _problems(path: Path, found: FoundModel, version: FoundVersion) -> Iterable[str]:
    """Returns why a version cannot be loaded, as far as can be told without loading its file."""
    if version.problem:
        return (version.problem,)
    root = path if path.is_dir() else path.parent
    file = root / (version.path or "")
    if found.config.ensemble is not None or not file.is_file():
        return ()
    try:
        entry = choose(found.config, file)
        if entry.name == "python":
            from backline.cli.python_source import source_problems  # rarely needed

            return tuple(source_problems(file, root / found.folder, found))
        backend = entry.backend()
        if isinstance(backend, FileCheck):
            backend.check_file(file)
    except BacklineError as error:
        return (error.message,)
    return ()


def _policy_problems(path: Path, found: FoundModel) -> list[str]:
    """Returns an error if the version policy names only missing versions and the model has no labels; else an
    empty list.
    """
    versions, policy = [version.version for version in found.versions], found.config.version_policy
    selected, missing = select(versions, policy)
    if policy.specific is None or selected or found.config.labels:  # versions with labels are served too
        return []
    return [none_selected(found.name, str(path / found.folder), versions, missing)]


def _label_problems(found: FoundModel) -> list[str]:
    versions = [version.version for version in found.versions]
    return [
        f"label '{label}' of '{found.name}' points to version {version}, which does not exist; available:"
        f" {listed(versions)}"
        for label, version in found.config.labels.items()
        if version not in versions
    ]


def check_ensembles(checked: Sequence[CheckedModel]) -> None:
    """Adds an error to each ensemble that calls a missing model, or whose tensors do not fit a model that it
    calls. The tensors of models that were not loaded are unknown, and are not checked.
    """
    from backline.lifecycle.composed import check_steps, composed_signature, unanswered_step

    engine = Engine()
    waiting = []
    for one in checked:
        engine.declare(one.found.name)
        if one.found.config.ensemble is not None and not one.errors:
            waiting.append(one)
        else:
            _make_known(engine, one)
    while waiting:  # each ensemble is checked after the ensembles that it calls
        reasons = [unanswered_step(engine, one.found.config) for one in waiting]
        if all(reasons):
            for one, reason in zip(waiting, reasons, strict=True):
                one.errors.append(reason)
            return
        for one in (one for one, reason in zip(waiting, reasons, strict=True) if not reason):
            config = one.found.config
            assert config.ensemble is not None, "only ensembles wait"
            try:
                check_steps(engine, config, config.ensemble)
            except BacklineError as error:
                one.errors.append(error.message)
            if one.loaded is not None:
                one.loaded.signature = composed_signature(config)
            _make_known(engine, one)
        waiting = [one for one, reason in zip(waiting, reasons, strict=True) if reason]


def _make_known(engine: Engine, checked: CheckedModel) -> None:
    """Adds a model to the engine. Marks a version that was not loaded as on demand, because its tensors are
    unknown.
    """
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
