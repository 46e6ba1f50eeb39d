"""A model file that a runtime loads and runs inside a worker process: a crash of the runtime ends only that
process. The server uses the worker like a model that it has loaded itself.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from backline.backends.backend import LoadedModel, runs_here
from backline.backends.registry import choose
from backline.lifecycle.loading.isolation.messages import RuntimeJob, decode_job
from backline.system.cores import usable_cores
from backline.workers.channel.protocol import Spec, WorkerLoad, WorkerLoaded
from backline.workers.child.caller import Caller
from backline.workers.child.requests import RequestBatch, WorkerRequest
from backline.workers.child.tracebacks import details
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument, ModelFailed
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor


class RuntimeModel:
    """A WorkerModel that wraps a runtime's LoadedModel. Forms no batches: each request is one run.

    The server forms batches, reshapes and joins as for any LoadedModel, and sends each batch as one request
    with the arrays that `LoadedModel.run` takes.
    """

    def __init__(self, message: WorkerLoad, model: LoadedModel) -> None:
        self._name, self._version = message.name, message.version
        self._model = model
        self._outputs = {spec.name: spec.datatype for spec in model.signature.outputs}
        # The server sends one batch more than can compute at the same time, so that another batch has already
        # arrived when a batch ends.
        concurrency = usable_cores() + 1
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="run")
        self.loaded = WorkerLoaded(
            [_spec(spec) for spec in model.signature.inputs],
            [_spec(spec) for spec in model.signature.outputs],
            concurrency=concurrency,
            warnings=list(model.warnings),
            threads_per_run=model.threads_per_run,
        )

    def execute(self, batch: RequestBatch) -> Awaitable[None]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._run_all, batch)

    def _run_all(self, batch: RequestBatch) -> None:
        for request in batch.requests:
            try:
                request.answer(self._run(request))
            except Internal as error:
                request.fail(ModelFailed(error.message))  # unchanged: the text already names the model
            except BacklineError as error:
                request.fail(error)
            except Exception as error:
                print(details(error), file=sys.stderr, flush=True)
                request.fail(Internal(f"{type(error).__name__}: {error}"))

    def _run(self, request: WorkerRequest) -> list[Tensor]:
        names = list(self._outputs) if request.wanted is None else list(request.wanted)
        inputs = {name: tensor.data for name, tensor in request.inputs.items()}
        return [
            self._tensor(name, array)
            for name, array in zip(names, self._model.run(inputs, names), strict=True)
        ]

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        datatype = self._outputs[name]
        if array.dtype != datatype.dtype:  # the file declares a datatype that the model does not return
            datatype = DataType.from_dtype(array.dtype)
        return Tensor(name, datatype, array.shape, array)

    def close(self) -> None:
        self._threads.shutdown()
        self._model.close()


def load(message: WorkerLoad, caller: Caller) -> RuntimeModel:
    """Loads the file of a job with its runtime. Raises BacklineError when the model cannot be served."""
    _be_expendable()
    job = decode_job(message.job, RuntimeJob)
    entry = choose(job.config, job.path)
    model = entry.backend().load(job.path, job.config, job.options)
    if not runs_here(model):
        raise InvalidArgument(
            f"'{job.path}': models of the {entry.name} backend cannot run in a separate process: remove"
            " lane process from the configuration"
        )
    return RuntimeModel(message, model)


def _be_expendable() -> None:
    """Disables core dumps, and makes the kernel kill this process before the server if memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


def _spec(spec: TensorSpec) -> Spec:
    return Spec(
        spec.name,
        spec.datatype.name,
        list(spec.shape),
        spec.optional,
        labels=list(spec.labels),
        column=spec.column,
    )
