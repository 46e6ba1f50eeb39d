"""The one seam that everything calls: what anybody may ask of the models, in the words of no protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from backline.engine.control import STABLE, Control
from backline.engine.custom_metrics import CustomMetrics
from backline.engine.deadline import watch
from backline.engine.errors import BacklineError, Internal, InvalidArgument, NotFound, Unavailable
from backline.engine.log_control import LogControl
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.model import Model, ModelState
from backline.engine.names import check_name
from backline.engine.responses import Responses
from backline.engine.shared_memory import SharedMemory
from backline.engine.statistics import LoadStatistics
from backline.engine.ticket import Ticket
from backline.engine.tracing import Trace, TraceControl, Tracer
from backline.engine.version_order import version_order


class Engine:
    """All models, and inference on them. Lives on one event loop; every method is called there.

    Who fills it (the lifecycle) calls `add`, sets a model's `state`, and then `refresh`.
    """

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        #: What changes the models, where they may be changed.
        self.control: Control | None = None
        #: What clients have registered, where they may.
        self.shared_memory: SharedMemory | None = None
        #: What changes the log, where it is a server's.
        self.log_control: LogControl | None = None
        #: Follows the requests of clients, while any are to be traced.
        self.tracer: Tracer | None = None
        #: What clients may change of that, where there is a server.
        self.trace_control: TraceControl | None = None
        #: What models count themselves.
        self.custom_metrics = CustomMetrics()
        self._labels: dict[str, Mapping[str, str]] = {}
        #: The loads of each model since the start, for the metrics.
        self.loads: dict[str, LoadStatistics] = {}
        #: (name, version or label) to the model that answers; the version "" is the one that the server chooses.
        self._routes: dict[tuple[str, str], Model] = {}
        #: Versions that take no new requests but have open sequences, whose requests go to them.
        self._leaving: list[Model] = []
        self._started = False
        self._stopping = False
        self._listeners: list[Callable[[], None]] = []

    # inference

    def submit(self, ticket: Ticket) -> None:
        """Checks and queues a request, whose ticket is completed later. Raises BacklineError when it is refused at once.

        What a queue refuses, the queue counts.
        """
        request = ticket.request
        try:
            if ticket.trace is not None and self.tracer is not None:
                ticket.trace = ticket.trace.follow(ticket)
            model = self._routes.get((request.model_name, request.model_version))
            if self._leaving and request.sequence is not None and not request.sequence.start:
                model = self._in_sequence(request, model)
            if model is None:
                model = self.find_ready(request.model_name, request.model_version)
            try:
                model.check(ticket)  # type: ignore[misc]
                if model.recording is not None:
                    model.recording.accepted(ticket)
                model.queue.submit(ticket)  # type: ignore[union-attr]
            except InvalidArgument:
                model.statistics.rejected_invalid += 1
                raise
        except BacklineError as error:
            ticket.refuse(error)
            raise
        except Exception as error:
            ticket.refuse(Internal(f"{type(error).__name__}: {error}"))
            raise

    def submit_until(self, ticket: Ticket, deadline: float) -> None:
        """As `submit`; a ticket that has not ended at `deadline`, of time.monotonic(), is answered with DeadlineExceeded then."""
        watch(ticket, deadline)
        self.submit(ticket)

    def _in_sequence(self, request: InferRequest, routed: Model | None) -> Model | None:
        """The version that goes on with the sequence of a request: the one it would get anyway, or one that is on its way out."""
        if routed is not None and routed.sequences is not None and routed.sequences.holds(request):
            return routed
        version = request.model_version
        for model in self._leaving:
            if (
                model.name != request.model_name
                or model.sequences is None
                or not model.sequences.holds(request)
            ):
                continue
            # A label may point elsewhere by now; another version was meant by who names one.
            if version in ("", model.version) or version in self._labels.get(model.name, {}):
                return model
        return routed

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs a request; cancelling this coroutine cancels it. Raises BacklineError."""
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()

        def complete(_: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif response is not None:
                future.set_result(response)

        ticket = Ticket(request, complete)
        self.submit(ticket)
        try:
            return await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    def stream(
        self, request: InferRequest, deadline: float | None = None, *, trace: Trace | None = None
    ) -> Responses:
        """Submits a request whose responses are taken one by one; the model waits while they are not. Works for every model.

        Raises BacklineError when it is refused at once. `deadline` is as of `submit_until`. A caller that does not take all
        responses closes the iterator, which cancels the request:

        >>> async with engine.stream(request) as responses:
        ...     async for response in responses: ...
        """
        responses = Responses(request, trace)
        if deadline is None:
            self.submit(responses.ticket)
        else:
            self.submit_until(responses.ticket, deadline)
        return responses

    def is_unknown(self, name: str, version: str = "") -> bool:
        """Whether a version is on demand and was never loaded, so that its inputs are known after `wake` only. Raises as `find_ready`."""
        model = self.find_ready(name, version)
        return model.on_demand and not model.signature.outputs

    async def wake(self, name: str, version: str = "") -> None:
        """Loads a version that is on demand; others are left as they are. Raises BacklineError, also when it cannot be loaded."""
        model = self.find_ready(name, version)
        if model.wake is not None:
            await model.wake()

    # what there is

    def models(self) -> Iterable[Model]:
        """All versions of all models, whatever their state, by name and version."""
        for name in sorted(self._models):
            yield from (
                self._models[name][version] for version in sorted(self._models[name], key=version_order)
            )

    def names(self) -> list[str]:
        """The names of all models, also of those without any version."""
        return sorted(self._models)

    def find(self, name: str, version: str = "") -> Model:
        """A version, or what a label points to, in whatever state; "" is the one served, else the newest.

        Raises NotFound, or InvalidArgument for a name that no model can have.
        """
        self.check_known(name)
        versions = self._models[name]
        if not versions:
            raise NotFound(f"Request for unknown model: '{name}' has no available versions")
        if version:
            labels = self._labels.get(name, {})
            found = versions.get(version) or versions.get(labels.get(version, ""))
            if found is None:
                check_name("version", version)
                raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
            return found
        route = self._routes.get((name, "")) or versions.get(self._labels.get(name, {}).get(STABLE, ""))
        return route if route is not None else versions[max(versions, key=version_order)]

    def check_known(self, name: str) -> None:
        """Raises NotFound for the name of no model, and InvalidArgument for one that no model can have."""
        if name not in self._models:
            if name:
                check_name("model", name)
            raise NotFound(f"Request for unknown model: '{name}' is not found")

    def find_ready(self, name: str, version: str = "") -> Model:
        """A version that can answer. Raises NotFound, or Unavailable when it is not ready."""
        model = self.find(name, version)
        if not model.answers:
            why = f": {model.reason}" if model.reason else ""
            raise Unavailable(
                f"Request for unknown model: '{name}' version {model.version} is not at ready state{why}",
                retry_after=1,
            )
        return model

    def served_versions(self, name: str) -> list[str]:
        """The versions of a model that can answer, oldest first."""
        versions = self._models.get(name, {})
        return sorted((v for v, model in versions.items() if model.answers), key=version_order)

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of a model and the versions they point to."""
        return self._labels.get(name, {})

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether a model version is ready to answer. Raises NotFound for an unknown one."""
        return self.find(name, version).ready

    @property
    def live(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        """Whether every version that is to be served can answer, and the server is not about to stop."""
        return (
            self._started
            and not self._stopping
            and all(model.ready or not model.required for model in self.models())
        )

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` whenever what is ready may have changed, until the function that is returned is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    # for the lifecycle

    def add(self, model: Model) -> None:
        """Makes a model version known, or puts it in the place of the one known by its name and version."""
        versions = self._models.setdefault(model.name, {})
        before = versions.get(model.version)
        if before is not None and before is not model and before.sequences is not None:
            self._leaving.append(before)
        versions[model.version] = model

    def declare(self, name: str) -> None:
        """Makes the name of a model known that may have no version."""
        self._models.setdefault(name, {})

    def remove(self, model: Model) -> None:
        """Makes a model version unknown, unless another one is in its place by now. The name stays known until `forget`."""
        versions = self._models.get(model.name, {})
        if versions.get(model.version) is model:
            del versions[model.version]

    def forget(self, name: str) -> None:
        """Makes the name of a model unknown, with all that is left of it."""
        self._models.pop(name, None)
        self._labels.pop(name, None)
        self.loads.pop(name, None)

    def set_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """The labels of a model and the versions they point to; a version of the same name goes before a label."""
        self._labels[name] = dict(labels)

    def refresh(self) -> None:
        """Takes note of changed states and labels: which version answers which name.

        Without a version a request gets what the label STABLE points to, where the model has this label, else the newest version.
        """
        routes: dict[tuple[str, str], Model] = {}
        for name, versions in self._models.items():
            served = self.served_versions(name)
            labels = self._labels.get(name, {})
            for label, version in labels.items():
                if version in served:
                    routes[name, label] = versions[version]
            for version in served:
                routes[name, version] = versions[version]
            chosen = labels.get(STABLE) or (served[-1] if served else "")
            if chosen in served:
                routes[name, ""] = versions[chosen]
        self._routes = routes
        present = dict.fromkeys(
            (*self._leaving, *(model for versions in self._models.values() for model in versions.values()))
        )
        self._leaving = [
            model for model in present if model.state is ModelState.UNLOADING and model.sequences is not None
        ]
        self._changed()

    def record_load(self, name: str, seconds: float, *, succeeded: bool) -> None:
        """Counts a load of a version of a model that has ended."""
        counts = self.loads.setdefault(name, LoadStatistics())
        if succeeded:
            counts.succeeded += 1
            counts.seconds += seconds
        else:
            counts.failed += 1

    def started(self) -> None:
        """All models were loaded, or failed to."""
        self._started = True
        self._changed()

    def stopping(self) -> None:
        """From now on the engine is not ready; what is in flight is finished."""
        self._stopping = True
        self._changed()

    @property
    def pending(self) -> int:
        """Requests that wait in all queues."""
        return sum(model.queue.pending for model in self.models() if model.queue is not None)
