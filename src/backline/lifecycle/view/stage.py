"""One stage between the model that a backend loads and the model that clients see, and the model seen through it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from backline.backends.backend import Cancellable, LoadedModel, Run, StreamingModel
from backline.engine.messages import Parameter
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature

Arrays: TypeAlias = Mapping[str, np.ndarray]
#: A StreamingModel's `stream`.
Stream: TypeAlias = Callable[[Arrays, Sequence[str], Mapping[str, Parameter]], Generator[Arrays, None, None]]


class Stage:
    """Changes nothing; a subclass overrides what it changes. One is made for each load.

    `outer` is the configuration as seen from the side of the clients, `inner` as seen from the side of the backend.
    """

    #: Whether it works on one request at a time. The scheduler and the execution then do its work for batches,
    #: and only a model seen through it by a request that runs alone has it in `run`.
    per_request: ClassVar[bool] = False

    def __init__(self, outer: ModelConfig, path: Path) -> None:
        """`path` is the model's file."""
        self.outer = outer
        self.path = path

    @property
    def inner(self) -> ModelConfig:
        """The configuration that the next stage towards the backend sees."""
        return self.outer

    @property
    def changes_runs(self) -> bool:
        """Whether `run` or `stream` does anything for this model."""
        return False

    def fit(self, inner: Signature) -> Signature:
        """The signature on the outer side. Called with that of the model before any run; replicas give equal ones.

        Raises BacklineError when the model does not fit the configuration.
        """
        return inner

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        """Calls `run` of the inner side for a caller on the outer side."""
        return run(inputs, outputs)

    def stream(
        self, stream: Stream, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Arrays, None, None]:
        """As `run`, of a StreamingModel."""
        return stream(inputs, outputs, parameters)


class StagedModel:
    """A model seen from the outer side of a stage: a LoadedModel or a StreamingModel, whichever it wraps.

    Everything but `signature`, and what runs the model, is the model's own attribute. So a wrapped model has exactly the
    optional abilities that it has unwrapped: none can get lost here. An isinstance() check by a protocol does not see
    forwarded attributes (from Python 3.12 on it does not call __getattr__): ask with getattr.
    """

    run: Run
    stream: Stream
    cancellable: Cancellable

    def __init__(self, model: LoadedModel | StreamingModel, stage: Stage) -> None:
        self._model: Any = model
        self._stage = stage
        self.signature = stage.fit(model.signature)
        # What runs the model must pass the stage: an ability that is added must get its line here. They are set once,
        # because `run` is looked up for every batch.
        if hasattr(model, "run"):
            self.run = partial(stage.run, model.run)
        if hasattr(model, "stream"):
            self.stream = partial(stage.stream, model.stream)
        if hasattr(model, "cancellable"):
            self.cancellable = partial(self._cancellable, model.cancellable)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _cancellable(self, begin: Cancellable) -> tuple[Run, Callable[[], None]]:
        run, cancel = begin()
        return partial(self._stage.run, run), cancel
