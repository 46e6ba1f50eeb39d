"""Models in this process that give any number of responses: each request is a stream on a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from backline.backends.backend import Run, StreamingModel
from backline.engine.device import Places
from backline.engine.model_config import ModelConfig
from backline.lifecycle.loading.loaded import LoadedVersion, missing_gpu
from backline.lifecycle.loading.placing import place_again
from backline.lifecycle.view.view import View
from backline.repository.configuration.effects import ignored_settings
from backline.workers.instance import Instance

if TYPE_CHECKING:
    from backline.lifecycle.loading.instances import InstanceMaker

#: Responses that warm-up takes from a stream, which may be endless.
STREAMED_RESPONSES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStreams(LoadedVersion):
    """Streams have no batches, and no run to measure."""

    model: StreamingModel

    def placed_again(self, config: ModelConfig) -> LoadedStreams:
        placed = place_again(config, self.placed)
        return replace(self, placed=placed, places=placed.spread(self.model.streams_at_once))

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        return maker.places_for_streams(self.model, self.instances)

    def lone_runs(self) -> Iterable[Run]:
        return (self._run_first_responses,)

    def _run_first_responses(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        with closing(self.model.stream(inputs, outputs, {})) as responses:
            for _ in islice(responses, STREAMED_RESPONSES):
                pass
        return []

    def close(self) -> None:
        self.model.close()


def loaded_streams(
    config: ModelConfig, view: View, model: StreamingModel, *, backend: str, platform: str, placed: Places
) -> LoadedStreams:
    """Decides how to run a model of streams."""
    return LoadedStreams(
        view=view,
        model=model,
        backend=backend,
        platform=platform,
        signature=view.fit(model.signature),
        max_batch_size=0,
        batch_limit=0,
        lane="thread",
        placed=placed,
        places=placed.spread(model.streams_at_once),
        reason="a request may get any number of responses, which are computed on a thread",
        decoupled=True,
        warnings=model.warnings + ignored_settings(config, "stream") + missing_gpu(config, placed),
    )
