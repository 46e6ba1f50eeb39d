"""The ordered list of stages between the model that a backend loads and the model that clients see."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from backline.backends.backend import LoadedModel, StreamingModel
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.view.arrays import Arrange, ReshapeTensors
from backline.lifecycle.view.join import JoinInWorker, JoinRequests
from backline.lifecycle.view.stage import Stage, StagedModel
from backline.lifecycle.view.states import HideStates
from backline_client.values.signature import Signature

Kind = TypeVar("Kind", bound=Stage)
AnyModel = TypeVar("AnyModel", LoadedModel, StreamingModel)


class NameClasses(Stage):
    """The stage that adds the class labels of the configuration to the outputs."""

    per_request = True

    def fit(self, inner: Signature) -> Signature:
        labels = {spec.name: spec.labels for spec in self.outer.outputs if spec.labels}
        if not labels:
            return inner
        outputs = tuple(replace(spec, labels=labels.get(spec.name, spec.labels)) for spec in inner.outputs)
        return replace(inner, outputs=outputs)


#: The stages in the order in which a request passes them on its way to the backend. Responses and signatures
#: pass them in reverse. Per-request stages come first, because batches are formed from requests that have
#: passed these stages.
STAGES: tuple[type[Stage], ...] = (NameClasses, HideStates, JoinRequests, ReshapeTensors, Arrange)
#: The stages of models in worker processes, where the worker reshapes and joins tensors.
STAGES_OF_WORKERS: tuple[type[Stage], ...] = (NameClasses, HideStates, JoinInWorker)


class View:
    """The stages of one load. `config` is the configuration that clients see, and `inner` the one that the
    backend gets.
    """

    def __init__(self, config: ModelConfig, path: Path, stages: tuple[type[Stage], ...] = STAGES) -> None:
        """`path` is the model's file."""
        self.config = config
        self._stages: list[Stage] = []
        for kind in stages:
            stage = kind(config, path)
            self._stages.append(stage)
            config = stage.inner
        self.inner = config

    def stage(self, kind: type[Kind]) -> Kind:
        """Returns the stage of this type, which must be in the list."""
        for stage in self._stages:
            if isinstance(stage, kind):
                return stage
        raise LookupError(kind)

    def wrap(self, model: AnyModel) -> AnyModel:
        """Wraps a backend's model in all stages except the per-request ones. Instances run batches on the
        wrapped model.

        Raises BacklineError when the model does not fit the configuration.
        """
        return self._through([stage for stage in self._stages if not stage.per_request], model)

    def fit(self, wrapped: Signature) -> Signature:
        """Returns the signature for clients of a wrapped model. Raises BacklineError as `wrap` does."""
        for stage in reversed(self._stages):
            if stage.per_request:
                wrapped = stage.fit(wrapped)
        return wrapped

    def alone(self, wrapped: LoadedModel) -> LoadedModel:
        """Wraps a model that `wrap` returned in the per-request stages too, to run single requests."""
        return self._through([stage for stage in self._stages if stage.per_request], wrapped)

    def _through(self, stages: list[Stage], model: AnyModel) -> AnyModel:
        for stage in reversed(stages):
            if stage.changes_runs:
                model = StagedModel(model, stage)  # forwards all attributes, so it fits AnyModel
        return model
