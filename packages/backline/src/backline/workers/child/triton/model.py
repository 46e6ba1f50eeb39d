"""Runs a class TritonPythonModel, and polls its `is_ready`."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

from backline.workers.channel.protocol import Kind, Readiness, WorkerLoad, WorkerLoaded
from backline.workers.child.requests import RequestBatch
from backline.workers.child.tracebacks import details, reason, triton_text
from backline.workers.child.triton import worker
from backline.workers.child.triton.model_config import ModelConfig
from backline.workers.child.triton.requests import RELEASE_RESCHEDULE, InferenceRequest, serving
from backline.workers.child.triton.responses import FINAL, InferenceResponse
from backline.workers.child.worker_model import WorkerModel
from backline_client.values.errors import ModelFailed

Start: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Future[Any]]

#: Seconds between two polls of `is_ready`.
_PAUSE = 1.0
#: The maximum duration of a poll in seconds (Triton's limit).
_PATIENCE = 5.0


def load_class(model: Any, message: WorkerLoad) -> WorkerModel:
    """Creates a model from a class TritonPythonModel. If `message.complete` is set and the class can complete
    its configuration, the model only completes the configuration.

    Raises ModelFailed, usually with the model's exception.
    """
    if message.complete and hasattr(model, "auto_complete_config"):
        return CompletedModel(model, message)
    return TritonModel(model, message)


def _is_asked(is_ready: Any) -> bool:
    """Returns whether the attribute `is_ready` is Triton's hook: a callable without required arguments."""
    return callable(is_ready) and not any(
        one.default is one.empty for one in signature(is_ready).parameters.values()
    )


class CompletedModel:
    """A model that only completes its configuration; another worker loads and runs it."""

    def __init__(self, model: Any, message: WorkerLoad) -> None:
        try:
            config = model.auto_complete_config(ModelConfig(message.configuration))
        except BaseException as error:
            print(details(error), file=sys.stderr, flush=True)
            raise ModelFailed(triton_text(error, message.folder)) from None
        if not isinstance(config, ModelConfig):
            raise ModelFailed(
                f"auto_complete_config function in model '{message.name}' must return a valid pb.ModelConfig"
                " object."
            )
        self.loaded = WorkerLoaded([], [], completed=json.dumps(config.as_dict()))

    def execute(self, batch: RequestBatch) -> None:
        """Never called, because another worker runs the model."""

    def close(self) -> None:
        """Does nothing, because the model was not initialised."""


class TritonModel:
    """An instance of a class TritonPythonModel. It runs one batch at a time, and may respond to requests
    after their batch has ended.
    """

    def __init__(self, model: Any, message: WorkerLoad) -> None:
        """Raises ModelFailed if the class has no method `execute`. If the constructor or `initialize` raises
        an exception, raises ModelFailed with that exception in the message.
        """
        config = json.loads(message.configuration)
        self._name = message.name
        self._version = int(message.version) if message.version.isdecimal() else -1
        self._folder = message.folder
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
        self._iterative = bool(config.get("sequence_batching", {}).get("iterative_sequence", False))
        #: The names of all outputs. Includes the outputs for implicit states, which the configuration does
        #: not list as outputs.
        self._outputs = frozenset(output.name for output in message.outputs)
        self._loop = ModelLoop()
        given = _arguments(message)
        self._instance = given["model_instance_name"]
        worker.name_instance(self._instance)
        if not callable(getattr(model, "execute", None)):
            raise ModelFailed(f"Python model file '{message.path}' does not implement `execute` method.")
        try:
            self._object = model()
            if hasattr(self._object, "initialize"):
                self._object.initialize(given)
        except BaseException as error:
            print(details(error), file=sys.stderr, flush=True)
            raise ModelFailed(triton_text(error, self._folder)) from None
        if _is_asked(getattr(self._object, "is_ready", None)):
            ReadinessWatch(
                self._object.is_ready,
                self._loop.start,
                lambda reason: worker.caller().tell(Kind.READY, Readiness(reason)),
                self._folder,
            ).start()
        self.loaded = WorkerLoaded(
            message.inputs,
            message.outputs,
            config["max_batch_size"],
            decoupled=self._decoupled,
            deferred=True,
            joined_if_asked=True,
        )

    def execute(self, batch: RequestBatch) -> None:
        requests = [
            InferenceRequest.received(
                request, self._name, self._version, self._outputs, decoupled=self._decoupled
            )
            for request in batch.requests
        ]
        try:
            with serving(batch.requests):
                answer = self._object.execute(requests)
                running = self._loop.start(answer) if asyncio.iscoroutine(answer) else None
            if running is not None:
                if self._decoupled:
                    running.add_done_callback(lambda ended: self._ended(requests, ended))
                    return
                answer = running.result()
            self._take(requests, answer)
        except BaseException as error:
            self._fail(requests, error)

    def _take(self, requests: Sequence[InferenceRequest], answer: Any) -> None:
        """Handles the value that `execute` returned. Raises _Returned if the value is invalid."""
        self._take_responses(requests, answer)
        for request in requests:
            if request.release_flags == RELEASE_RESCHEDULE:
                if not self._iterative:
                    raise _Returned(
                        "only a request of an iterative sequence can be rescheduled: set"
                        " sequence_batching.iterative_sequence"
                    )
                request.get_response_sender().reschedule()

    def _take_responses(self, requests: Sequence[InferenceRequest], answer: Any) -> None:
        if answer is None:
            return
        if self._decoupled:
            raise _Returned(
                f"Python model '{self._instance}' is using the decoupled mode and the execute function must"
                " return None."
            )
        if not isinstance(answer, list):
            raise _Returned(f"Expected a list in the execute return, found type '{type(answer)}'.")
        if len(answer) != len(requests):
            raise _Returned(
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects."
                f" InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size"
                f" is:{len(answer)}\n"
            )
        for request, response in zip(requests, answer, strict=True):
            if response is None:
                continue
            if request.release_flags == RELEASE_RESCHEDULE:
                raise _Returned(
                    "Expected a None object in the execute function return list for reschduled request,"
                    f" found type '{type(response)}'."
                )
            if not isinstance(response, InferenceResponse):
                raise _Returned(
                    "Expected an 'InferenceResponse' object in the execute function return list, found type"
                    f" '{type(response)}'."
                )
            request.get_response_sender().send(response, FINAL)

    def _ended(self, requests: Sequence[InferenceRequest], ended: Future[Any]) -> None:
        """Handles the end of the coroutine that ran a decoupled model's batch."""
        try:
            self._take(requests, ended.result())
        except BaseException as error:
            self._fail(requests, error)

    def _fail(self, requests: Sequence[InferenceRequest], error: BaseException) -> None:
        if not isinstance(error, _Returned):
            print(details(error), file=sys.stderr, flush=True)
        said = str(error) if isinstance(error, _Returned) else triton_text(error, self._folder)
        text = f"Failed to process the request(s) for model '{self._instance}', message: {said}"
        for request in requests:
            request.get_response_sender().fail(text)

    def close(self) -> None:
        if hasattr(self._object, "finalize"):
            self._object.finalize()


class ModelLoop:
    """The event loop for a model's coroutines, on a dedicated thread.

    The loop starts with the first coroutine, and keeps running between batches, so that tasks that the model
    starts can continue.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Starts a coroutine on the loop's thread."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._run, args=(self._loop,), name="model-loop", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()


class _Returned(Exception):
    """Raised when `execute` has returned an invalid value."""


def _arguments(message: WorkerLoad) -> dict[str, str]:
    """Returns the arguments of `initialize`, with Triton's names; all are strings."""
    return {
        "model_config": message.configuration,
        "model_instance_kind": message.device_kind.upper(),
        "model_instance_name": message.instance,
        "model_instance_device_id": str(message.device_index),
        "model_repository": str(Path(message.folder)),
        "model_version": message.version,
        "model_name": message.name,
    }


class ReadinessWatch:
    """Polls a model's `is_ready` and reports changes: "" if the model is ready, otherwise the reason why it
    is not.

    The polls run on a separate thread, so that a busy model does not count as unready. A poll that hangs is
    not followed by another one until it ends.
    """

    def __init__(
        self, is_ready: Callable[[], Any], start: Start, tell: Callable[[str], None], folder: str
    ) -> None:
        """`start` runs a coroutine of the model, and `tell` is called with each report."""
        self._is_ready = is_ready
        self._start_coroutine = start
        self._tell = tell
        self._folder = folder
        self._asked: Future[Any] | None = None
        self._told = ""

    def start(self) -> None:
        """Polls once, and then starts to poll in the background."""
        self._look()
        threading.Thread(target=self._watch, name="backline-readiness", daemon=True).start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(_PAUSE):
            self._look()

    def _look(self) -> None:
        found = self._ask()
        if found != self._told:
            self._told = found
            self._tell(found)

    def _ask(self) -> str:
        if self._asked is None:
            self._asked = Future()
            threading.Thread(target=self._run, args=(self._asked,), name="is_ready", daemon=True).start()
        try:
            answer = self._asked.result(_PATIENCE)
        except TimeoutError:
            if not self._asked.done():
                return f"its is_ready did not return within {_PATIENCE:g} s"
            answer = self._asked.exception()
        except BaseException as error:
            answer = error
        self._asked = None
        if isinstance(answer, BaseException):
            return f"its is_ready has failed: {reason(answer, self._folder)}"
        if not isinstance(answer, bool):
            return f"its is_ready returned a {type(answer).__name__}, not a bool"
        return "" if answer else "its is_ready returned False"

    def _run(self, asked: Future[Any]) -> None:
        try:
            answer = self._is_ready()
            asked.set_result(
                self._start_coroutine(answer).result() if asyncio.iscoroutine(answer) else answer
            )
        except BaseException as error:
            asked.set_exception(error)
