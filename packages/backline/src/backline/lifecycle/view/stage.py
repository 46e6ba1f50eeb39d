"""The interface of a stage between the model that a backend loads and the model that clients see."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from backline.backends.backend import Cancellable, LoadedModel, Run, StreamingModel
from backline.engine.config.model_config import ModelConfig
from backline_client.values.messages import Parameter
from backline_client.values.signature import Signature

Arrays: TypeAlias = Mapping[str, np.ndarray]
#: The type of StreamingModel.stream.
Stream: TypeAlias = Callable[[Arrays, Sequence[str], Mapping[str, Parameter]], Generator[Arrays, None, None]]


class Stage:
    """A stage that changes nothing. Subclasses override its methods. Each load makes its own stages.

    `outer` is the configuration on the clients' side, `inner` the configuration on the backend's side.
    """

    #: Whether the stage works on single requests. If so, `run` is used only for requests that run alone. For
    #: batches, the scheduler or the execution does the work of the stage.
    per_request: ClassVar[bool] = False

    def __init__(self, outer: ModelConfig, path: Path) -> None:
        """`path` is the model's file."""
        self.outer = outer
        self.path = path

    @property
    def inner(self) -> ModelConfig:
        """The configuration that the next stage towards the backend gets."""
        return self.outer

    @property
    def changes_runs(self) -> bool:
        """Whether `run` or `stream` changes anything for this model."""
        return False

    def fit(self, inner: Signature) -> Signature:
        """Returns the signature on the outer side, derived from the inner one.

        Called before any run, at least once for each replica. Raises BacklineError when the model does not
        fit the configuration.
        """
        return inner

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        """Translates the inputs, calls `run` on the inner side, and translates the outputs back."""
        return run(inputs, outputs)

    def stream(
        self, stream: Stream, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Arrays, None, None]:
        """Translates the inputs, calls `stream` on the inner side, and translates each response back; for a
        StreamingModel.
        """
        return stream(inputs, outputs, parameters)


class StagedModel:
    """A LoadedModel or StreamingModel as seen from the outer side of a stage.

    All attributes except `signature` and the methods that run the model are those of the wrapped model, so
    that wrapping hides no optional feature. Query such features with getattr: from Python 3.12 on,
    isinstance() with a protocol does not see forwarded attributes.
    """

    run: Run
    stream: Stream
    cancellable: Cancellable

    def __init__(self, model: LoadedModel | StreamingModel, stage: Stage) -> None:
        self._model: Any = model
        self._stage = stage
        self.signature = stage.fit(model.signature)
        # A method that runs the model must pass through the stage, so each such method needs a line here. The
        # methods are bound once, because `run` is looked up for every batch.
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
