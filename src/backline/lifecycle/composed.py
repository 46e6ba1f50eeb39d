"""Versions of models that consist of others: an ensemble has no file, and is ready when the models are that it asks."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor as Threads
from time import monotonic
from typing import Any
from uuid import uuid4

from backline.engine.decoupled import DecoupledCheck
from backline.engine.errors import InvalidArgument
from backline.engine.model import Model
from backline.engine.model_config import ModelConfig
from backline.engine.response_statistics import ResponseStatistics
from backline.engine.signature import RequestCheck
from backline.engine.ticket import Ticket
from backline.lifecycle.calls.call_graph import Wait
from backline.lifecycle.calls.ensemble_steps import (
    asked_models,
    check_steps,
    composed_signature,
    step_models,
    unanswered_step,
    waits_of_decoupled_steps,
)
from backline.lifecycle.loading.loader import Measured
from backline.lifecycle.loading.scheduling_text import scheduling_text
from backline.lifecycle.plan import Phase
from backline.lifecycle.servable import Servable
from backline.schedule.cache.flight import RequestKeys
from backline.schedule.cache.queue import CachedQueue
from backline.schedule.ensembles.graph import StepModel
from backline.schedule.ensembles.queue import EnsembleQueue
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.version_queue import with_deadline


class ComposedServable(Servable):
    """One version of an ensemble. Nothing is read from its files and no thread is taken: loading it is a look at the models it asks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As a Servable."""
        super().__init__(*args, **options)
        self._engine = self._shared.engine
        self._graph = self._shared.call_graph
        #: The waits of its steps that the graph knows.
        self._waits: list[Wait] = []
        self._composed: EnsembleQueue | None = None
        #: The cache in front of it, if there is one.
        self._cached: CachedQueue | None = None
        #: The versions that answer for its steps.
        self._asked: tuple[Model, ...] = ()
        #: It does not answer because a model that it asks does not: it is tried again when that has changed.
        self.lacking = False

    async def load(self, threads: Threads, known: Measured | None) -> None:
        """Raises InvalidArgument when its steps do not fit each other, or a model that it asks is not there."""
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = monotonic()
        config = self.model.config
        assert config.ensemble is not None, "it is an ensemble"
        reason = unanswered_step(self._engine, config)
        self.lacking = bool(reason)
        if reason:
            raise InvalidArgument(reason)
        check_steps(self._engine, config, config.ensemble)
        signature = composed_signature(config)
        self._composed = EnsembleQueue(
            config.name,
            self.model.version,
            config.ensemble,
            signature,
            self._submit_step,
            self.model.statistics,
            batched=bool(config.max_batch_size),
            turn=self._shared.turn,
        )
        model = self.model
        model.platform = "ensemble"
        model.backend = ""
        model.signature = signature
        model.max_batch_size = config.max_batch_size or 0
        if config.response_cache:
            self._keep_answers(self._composed)
        model.queue = with_deadline(self._cached or self._composed, config.default_deadline_seconds)
        model.progress = None
        self._take_models(
            asked_models(self._engine, config.ensemble), step_models(self._engine, config.ensemble)
        )
        self._wait_for_steps()
        self.phase = Phase.LOADED
        model.statistics.load_seconds = monotonic() - began

    def _submit_step(self, ticket: Ticket) -> None:
        self._engine.submit(ticket)  # looked up each time: it is another one while requests are followed

    def _keep_answers(self, queue: EnsembleQueue) -> None:
        model, cache = self.model, self._shared.cache
        self._warn_of_cache()
        if cache is not None:
            loop = asyncio.get_running_loop()
            self._cached = CachedQueue(
                queue,
                cache,
                self._keys(),
                QueueSettings(),
                model.statistics,
                name=model.name,
                version=model.version,
                loop=loop,
            )

    def _keys(self) -> RequestKeys:
        """Keys that nothing was answered for: what its models answer may change with them."""
        return RequestKeys(self.model.name, self.model.version, f"steps {uuid4()}")

    def _take_models(self, asked: tuple[Model, ...], models: tuple[StepModel, ...]) -> None:
        """With one decoupled step it is decoupled itself, as in Triton."""
        assert self._composed is not None, "it is loaded"
        model = self.model
        self._asked = asked
        self._composed.update(models)
        if self._cached is not None:
            self._cached.answer_for(self._keys())
        model.decoupled = any(step.decoupled for step in models)
        if model.decoupled != (model.statistics.responses is not None):
            model.statistics.responses = ResponseStatistics() if model.decoupled else None
        self._time_first_responses()
        model.scheduling = scheduling_text(
            model.config, 0, decoupled=model.decoupled, cached=self._cached is not None
        )
        check = RequestCheck(model.name, model.signature, model.max_batch_size, strict=True)
        model.check = DecoupledCheck(model.name, check) if model.decoupled else check

    def _wait_for_steps(self) -> None:
        """Tells the graph which steps may stand still. Raises InvalidArgument where one holds what those behind it need."""
        config, permits = self.model.config, self._shared.permits
        assert config.ensemble is not None, "it is an ensemble"
        self._forget_waits()
        waits = waits_of_decoupled_steps(self._engine, config.ensemble)
        if permits is not None:
            together = self._graph.together_with(waits)
            for waiting in dict.fromkeys(waiting for waiting, _ in waits):
                wanting = permits.wanting(together, waiting)
                if wanting:
                    raise InvalidArgument(
                        f"in ensemble {config.name}, model '{waiting[0]}' would wait for the steps behind it, which might wait for"
                        f" {wanting} for ever: who waits holds what it takes. Give the server more (--rate-limit-resource), or let their"
                        " instances take less"
                    )
        self._graph.add(waits)
        self._waits = waits

    def _forget_waits(self) -> None:
        self._graph.remove(self._waits)
        self._waits = []

    def fail(self, reason: str, retry_at: float | None) -> None:
        """See Servable."""
        self._forget_waits()
        super().fail(reason, retry_at)

    def review(self) -> bool:
        """Whether what it asks has changed so that it must be taken out of service, which is done, or be loaded again."""
        if self.phase is not Phase.READY and not (self.phase is Phase.FAILED and self.lacking):
            return False
        config = self.model.config
        assert config.ensemble is not None, "it is an ensemble"
        reason = unanswered_step(self._engine, config)
        if self.phase is Phase.FAILED:
            return not reason
        if not reason and self._composed is not None:
            asked = asked_models(self._engine, config.ensemble)
            known = self._composed.models
            # Of a model that was put to sleep nothing is known but what was.
            models = tuple(
                new if new.ranks else old
                for new, old in zip(step_models(self._engine, config.ensemble), known, strict=True)
            )
            try:
                if asked != self._asked or models != known:
                    check_steps(self._engine, config, config.ensemble)
                    self._take_models(asked, models)
                self._wait_for_steps()
            except InvalidArgument as error:
                reason = error.message
        if reason:
            self.lacking = True
            self.fail(reason, None)
        return bool(reason)

    @property
    def may_come_back(self) -> bool:
        """See Servable."""
        return not unanswered_step(self._engine, self.model.config)

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        return self._composed is not None and self._composed.running > 0

    def update(self, config: ModelConfig) -> None:
        """Takes a configuration that differs in what needs no load."""
        self._config = self.model.config = config
        self._time_first_responses()

    async def drain(self, limit: float) -> None:
        """Finishes what it has, for at most `limit` seconds."""
        queue = self._cached or self._composed
        if queue is not None:
            await queue.drain(limit)
        self._forget_waits()
        await super().drain(0)
