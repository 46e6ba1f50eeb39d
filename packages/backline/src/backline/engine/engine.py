"""The interface between callers and models: everything that callers may request, independent of protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress

from backline.engine.custom_metrics import CustomMetrics
from backline.engine.deadline import watch
from backline.engine.front import Front, Fronts
from backline.engine.latency_summaries import LatencySummaries
from backline.engine.model import NO_SEQUENCES, NO_VERSION, Model, ModelState
from backline.engine.responses import Responses
from backline.engine.shared_memory import SharedMemory
from backline.engine.statistics import CacheCounters, LoadStatistics
from backline.engine.ticket import Ticket
from backline.engine.tracing import Trace, TraceControl, Tracer
from backline_client.values.control import STABLE, Control, LogControl
from backline_client.values.errors import BacklineError, Internal, InvalidArgument, NotFound, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.names import check_name, version_order


class Engine:
    """The registry of all models. It passes requests to the models. All methods must be called on the same
    event loop.

    To register a model, the lifecycle calls `add`, sets the `state` of the model, and then calls `refresh`.
    """

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        #: Makes changes to models; None if models cannot be changed.
        self.control: Control | None = None
        #: Whether models are loaded only when a client requests the load. If so, errors about models without
        #: versions say so.
        self.loads_by_request = False
        #: The shared memory regions that clients have registered; None if clients may not register regions.
        self.shared_memory: SharedMemory | None = None
        #: Reads and changes the log settings; None if the engine runs without a server.
        self.log_control: LogControl | None = None
        #: The name of the server in its metadata.
        self.server_name = "backline"
        #: Why the server is not live; "" if it is. Only under Triton's rules can a server not be live.
        self.not_live = ""
        #: The tracer for the requests of clients; None while no requests are to be traced.
        self.tracer: Tracer | None = None
        #: Reads and changes the trace settings; None if the engine runs without a server.
        self.trace_control: TraceControl | None = None
        #: The metrics that models define.
        self.custom_metrics = CustomMetrics()
        #: The counters of the response cache; None if the server has no response cache in its memory.
        self.response_cache: CacheCounters | None = None
        #: Whether the engine computes quantiles of latencies for the versions that are added from now on.
        self.summarises_latencies = False
        #: The repository of each model, by the model's name; empty if namespacing is off.
        self.namespaces: Mapping[str, str] = {}
        #: By repository, the names that its models may use for models, each with the name under which that
        #: model is served; empty if namespacing is off.
        self.local_names: Mapping[str, Mapping[str, str]] = {}
        #: The names that models of several repositories share, each with the names under which these models
        #: are served.
        self.ambiguous: Mapping[str, Sequence[str]] = {}
        #: What serves requests without a version in place of the model of that name.
        self.fronts = Fronts()
        self._labels: dict[str, Mapping[str, str]] = {}
        self._only_by_label: dict[str, Set[str]] = {}
        #: The statistics of the loads since the server started, by model.
        self.loads: dict[str, LoadStatistics] = {}
        #: The versions that serve requests, by model name and version or label; "" is the default version.
        self._routes: dict[tuple[str, str], Model] = {}
        #: The keys of each model in `_routes`.
        self._routed: dict[str, Collection[tuple[str, str]]] = {}
        #: The versions that are being unloaded, and accept only further requests of their open sequences.
        self._leaving: list[Model] = []
        self._started = False
        self._stopping = False
        self._listeners: list[Callable[[], None]] = []

    # inference

    def submit(self, ticket: Ticket, *, direct: bool = False) -> None:
        """Checks and queues a request, whose ticket is completed later. Raises BacklineError if the request
        is refused immediately.

        A queue counts the requests that it refuses; this method counts the requests that do not fit the
        model. `direct` passes by all fronts: the steps of an ensemble always use the models that it names.
        """
        request = ticket.request
        try:
            if self.fronts and not direct:
                if self._taken(ticket):
                    return
                request = ticket.request
            if ticket.trace is not None and self.tracer is not None:
                ticket.trace = ticket.trace.follow(ticket)
            model = self._routes.get((request.model_name, request.model_version))
            if self._leaving and request.sequence is not None and not request.sequence.start:
                model = self._in_sequence(request, model)
            if model is None:
                model = self.find_ready(request.model_name, request.model_version)
            serving = model.serving
            try:
                serving.check(ticket)
                if model.recording is not None:
                    model.recording.accepted(ticket)
                serving.queue.submit(ticket)
            except InvalidArgument:
                model.statistics.rejected_invalid += 1
                raise
        except BacklineError as error:
            ticket.refuse(error)
            raise
        except Exception as error:
            # The ticket's listeners must learn of the refusal even if it is caused by a fault in the server.
            ticket.refuse(Internal(f"{type(error).__name__}: {error}"))
            raise

    def _taken(self, ticket: Ticket) -> bool:
        """Lets the fronts choose the model of a request. Returns whether one of them has taken the ticket."""
        while not ticket.request.model_version:
            front = self.fronts.get(ticket.request.model_name)
            if front is None:
                return False
            if front.take(ticket):
                return True
        return False

    def submit_until(self, ticket: Ticket, deadline: float) -> None:
        """Submits a request that ends with DeadlineExceeded at `deadline` (a time of time.monotonic())."""
        watch(ticket, deadline)
        self.submit(ticket)

    def _in_sequence(self, request: InferRequest, routed: Model | None) -> Model | None:
        """Returns the version that serves the sequence of a request: the version `routed` that the request is
        routed to (may be None), or a version that is being unloaded.
        """
        if routed is not None and routed.serving.sequences.holds(request):
            return routed
        version = request.model_version
        for model in self._leaving:
            # An explicit version must match. A label need not, because it may have been moved to another
            # version since the sequence began.
            if (
                model.name == request.model_name
                and model.serving.sequences.holds(request)
                and (version in ("", model.version) or version in self._labels.get(model.name, {}))
            ):
                return model
        return routed

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs a request. Cancelling this coroutine cancels the request. Raises BacklineError if the request
        fails.
        """
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
        self,
        request: InferRequest,
        deadline: float | None = None,
        *,
        trace: Trace | None = None,
        admit: Callable[[Ticket], None] | None = None,
        fields: Mapping[bytes, bytes] | None = None,
    ) -> Responses:
        """Submits a request to any model, and returns an iterator over the responses. The model is paused
        while the caller does not keep up.

        Raises BacklineError if the request is refused immediately. `deadline` is as for `submit_until`.
        `admit` is called with the ticket before it is submitted, and may raise BacklineError. `fields` are
        the header fields or metadata with which the request came. A caller that
        does not take all responses must close the iterator, which cancels the request:

        >>> async with engine.stream(request) as responses:
        ...     async for response in responses: ...
        """
        responses = Responses(request, trace)
        responses.ticket.fields = fields
        if admit is not None:
            admit(responses.ticket)
        if deadline is None:
            self.submit(responses.ticket)
        else:
            self.submit_until(responses.ticket, deadline)
        return responses

    def is_unknown(self, name: str, version: str = "") -> bool:
        """Returns whether a version is on demand and was never loaded. Its inputs are then unknown until
        `wake` has loaded it.

        Raises NotFound if there is no such version, and Unavailable if it is not ready.
        """
        model = self.find_ready(name, version)
        return model.on_demand and not model.signature.outputs

    async def wake(self, name: str, version: str = "") -> None:
        """Loads an on-demand version. Has no effect on other versions. Raises the errors of `find_ready`, and
        BacklineError if the load fails.
        """
        await self.find_ready(name, version).serving.wake()

    # looking up models

    def models(self) -> Iterator[Model]:
        """Yields all versions of all models, in any state, sorted by name and version.

        Models may change while a caller iterates. The versions of each model are read when the iteration
        reaches that model.
        """
        for name in sorted(self._models):
            versions = self._models.get(name, {})
            if len(versions) == 1:  # the usual case, which needs no sorting
                yield from tuple(versions.values())
            else:
                yield from [versions[version] for version in sorted(versions, key=version_order)]

    def _in_any_order(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    def names(self) -> list[str]:
        """Returns the names of all models, including those without versions."""
        return sorted(self._models)

    def find(self, name: str, version: str = "") -> Model:
        """Returns a version in any state. `version` is a version or a label; "" means the version that gets
        requests without a version or, if none does, the version with the label STABLE, or else the newest.

        The name of a front means the first of its targets that can respond. Raises NotFound if there is no
        such version, and InvalidArgument if no model or version can have this name.
        """
        if not version and name in self.fronts and name not in self._models:
            return self._behind(self.fronts[name])
        self.check_known(name)
        versions = self._models[name]
        if not versions:
            if self.loads_by_request:
                raise NotFound(
                    f"Request for unknown model: '{name}' is not found: the model is not loaded; to load it:"
                    f" backline models load {name}"
                )
            raise NotFound(f"Request for unknown model: '{name}' has no available versions")
        if version:
            labels = self._labels.get(name, {})
            found = versions.get(version) or versions.get(labels.get(version, ""))
            if found is None:
                check_name("version", version)
                raise NotFound(_no_version(name, version))
            return found
        route = self._routes.get((name, "")) or versions.get(self._labels.get(name, {}).get(STABLE, ""))
        return route if route is not None else versions[max(versions, key=version_order)]

    def _behind(self, front: Front) -> Model:
        found: Model | None = None
        failure: BacklineError | None = None
        for name, version in front.targets:
            try:
                one = self.find(name, version)
            except BacklineError as error:
                failure = failure or error
                continue
            if one.answers:
                return one
            found = found or one
        if found is None:
            raise failure or NotFound("the route has no targets")
        return found

    def serves(self, name: str, version: str) -> bool:
        """Returns whether requests for a version or label, or to a front, can get responses now."""
        return (name, version) in self._routes or (not version and name in self.fronts)

    def candidates(self, name: str, version: str = "") -> list[Model]:
        """Returns the versions that may run a request: one or, behind a front, those of its targets that can
        respond. Raises the errors of `find_ready`, in front of none.
        """
        front = None if version else self.fronts.get(name)
        if front is None:
            return [self.find_ready(name, version)]
        found: list[Model] = []
        for target in front.targets:
            with suppress(BacklineError):
                found += self.candidates(*target)
        return found or [self.find_ready(name)]

    @property
    def live(self) -> bool:
        return not self.not_live

    def check_live(self) -> None:
        """Raises Unavailable, with the reason, if the server is not live."""
        if self.not_live:
            raise Unavailable(f"Server not ready: {self.not_live}", retry_after=1)

    def is_known(self, name: str) -> bool:
        """Returns whether there is a model with this name that has at least one version, or a front."""
        return bool(self._models.get(name)) or name in self.fronts

    def versions(self, name: str) -> list[Model]:
        """Returns the versions of a model in any state, including versions that are being unloaded and serve
        only their open sequences. The versions of a front are those of its targets, besides those of a model
        with the same name.

        Raises NotFound for an unknown model, and InvalidArgument if no model can have this name.
        """
        behind: list[Model] = []
        if name in self.fronts:
            behind = [one for target, _ in self.fronts[name].targets for one in self._all(target)]
        else:
            self.check_known(name)
        leaving = (model for model in self._leaving if model.name == name)
        return list(dict.fromkeys((*self._models.get(name, {}).values(), *behind, *leaving)))

    def _all(self, name: str) -> list[Model]:
        front = self.fronts.get(name)
        own = list(self._models.get(name, {}).values())
        names = {target for target, _ in front.targets if target != name} if front is not None else ()
        return own + [one for target in names for one in self._all(target)]

    def check_known(self, name: str) -> None:
        """Raises NotFound for an unknown model, Unavailable if the server is not live, and InvalidArgument if
        no model can have this name.
        """
        if name not in self._models:
            self.check_live()
            if name:
                check_name("model", name)
            if name in self.ambiguous:
                raise InvalidArgument(ambiguous_text(name, self.ambiguous[name]))
            if name in self.fronts:
                raise NotFound(
                    f"Request for unknown model: '{name}' is not found: it is a route, which has no versions"
                    " or labels of its own; leave the version out, or name a model"
                )
            raise NotFound(f"Request for unknown model: '{name}' is not found")

    def name_for(self, caller: str, name: str) -> str:
        """Returns the name under which the model is served that the model `caller` calls `name`. With
        namespaces, a model's own repository takes precedence over the others.
        """
        return self.local_names.get(self.namespaces.get(caller, ""), {}).get(name, name)

    def find_ready(self, name: str, version: str = "") -> Model:
        """Returns a version that can respond.

        Raises NotFound if there is no such version, or if the model could not be read, and Unavailable if the
        version is not ready.
        """
        route = self._routes.get((name, version))
        if route is not None and route.answers:  # the usual case
            return route
        model = self.find(name, version)
        if model.version == NO_VERSION:
            raise NotFound(f"Request for unknown model: '{name}' is not found: {model.reason}")
        if not model.answers:
            reason = f": {model.reason}" if model.reason else ""
            why = f"version {model.version} is not at ready state{reason}"
            any_version = "" if version or self.served_versions(name) else "has no available versions: "
            raise Unavailable(f"Request for unknown model: '{name}' {any_version}{why}", retry_after=1)
        return model

    def served_versions(self, name: str) -> list[str]:
        """Returns the versions of a model that can respond, oldest first."""
        versions = self._models.get(name, {})
        served = [version for version, model in versions.items() if model.answers]
        return served if len(served) < 2 else sorted(served, key=version_order)

    def labels(self, name: str) -> Mapping[str, str]:
        """Returns the labels of a model, and the versions that the labels point to."""
        return self._labels.get(name, {})

    def is_ready(self, name: str, version: str = "") -> bool:
        """Returns whether a version is ready. Raises the errors of `find`."""
        return self.find(name, version).ready

    @property
    def ready(self) -> bool:
        """Whether the start is complete, all versions that are `required` are ready, and the server is not
        stopping.
        """
        return (
            self.live
            and self._started
            and not self._stopping
            and all(model.ready or not model.required for model in self._in_any_order())
        )

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` whenever the readiness of a version or of the server may have changed. Returns a
        function that removes the listener.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    # changes by the lifecycle

    def add(self, model: Model) -> None:
        """Adds a version. It replaces a version of the same model with the same name."""
        versions = self._models.setdefault(model.name, {})
        before = versions.get(model.version)
        # The open sequences of the replaced load continue on that load.
        if before is not None and before is not model and before.serving.sequences is not NO_SEQUENCES:
            self._leaving.append(before)
        versions[model.version] = model
        if self.summarises_latencies and model.statistics.summaries is None:
            model.statistics.summaries = LatencySummaries()

    def declare(self, name: str) -> None:
        """Makes the name of a model known, even if the model has no versions."""
        self._models.setdefault(name, {})

    def remove(self, model: Model) -> None:
        """Removes a version, unless another load of it has taken its place. The name of the model remains
        known until `forget` is called.
        """
        versions = self._models.get(model.name, {})
        if versions.get(model.version) is model:
            del versions[model.version]

    def forget(self, name: str) -> None:
        """Removes a model with all its versions, labels and load statistics."""
        self._models.pop(name, None)
        self._labels.pop(name, None)
        self._only_by_label.pop(name, None)
        self.loads.pop(name, None)

    def set_labels(self, name: str, labels: Mapping[str, str], only_by_label: Set[str] = frozenset()) -> None:
        """Sets the labels of a model, and the versions that they point to. If a label equals the name of a
        version, the version takes precedence.

        The versions `only_by_label` are loaded only because a label points to them.
        """
        self._labels[name] = dict(labels)
        self._only_by_label[name] = only_by_label

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Determines which version serves which requests, after states or labels have changed.

        `names` are the models that have changed; None means all models. Requests without a version go to the
        version with the label STABLE, or to the newest version if no version has this label. A version that
        is served only because another label points to it gets such requests only if there is no other
        version.
        """
        changed = dict.fromkeys((*self._routed, *self._models) if names is None else names)
        for name in changed:
            for key in self._routed.pop(name, ()):
                del self._routes[key]
            routes = self._routes_of(name)
            if routes:
                self._routes.update(routes)
                self._routed[name] = tuple(routes)
        present = (model for name in changed for model in self._models.get(name, {}).values())
        self._leaving = [
            model
            for model in dict.fromkeys((*self._leaving, *present))
            if model.state is ModelState.UNLOADING and model.serving.sequences is not NO_SEQUENCES
        ]
        self._changed()

    def _routes_of(self, name: str) -> dict[tuple[str, str], Model]:
        """Returns the versions of a model that serve requests, by their keys in `_routes`."""
        routes: dict[tuple[str, str], Model] = {}
        versions = self._models.get(name, {})
        served = self.served_versions(name)
        labels = self._labels.get(name, {})
        for label, version in labels.items():
            if version in served:
                routes[name, label] = versions[version]
        for version in served:
            routes[name, version] = versions[version]
        aside = self._only_by_label.get(name, frozenset())
        candidates = [version for version in served if version not in aside] or served
        chosen = labels.get(STABLE) or (candidates[-1] if candidates else "")
        if chosen in served:
            routes[name, ""] = versions[chosen]
        return routes

    def record_load(self, name: str, seconds: float, *, succeeded: bool) -> None:
        """Counts a load of a version of the model `name`. The load took `seconds` and was successful if
        `succeeded` is set.
        """
        counts = self.loads.setdefault(name, LoadStatistics())
        if succeeded:
            counts.succeeded += 1
            counts.seconds += seconds
        else:
            counts.failed += 1

    def started(self) -> None:
        """Records that the server's start is complete: all models have been loaded, or have failed to
        load.
        """
        self._started = True
        self._changed()

    @property
    def is_stopping(self) -> bool:
        """Whether the server is stopping. Streams of events that have no end must then be closed."""
        return self._stopping

    def stopping(self) -> None:
        """Records that the server is stopping. The engine is not ready from now on."""
        self._stopping = True
        self._changed()

    @property
    def pending(self) -> int:
        """The number of requests that wait in all queues together."""
        return sum(model.serving.queue.pending for model in self._in_any_order())


def ambiguous_text(name: str, served: Sequence[str]) -> str:
    """Returns the error message for a name that several repositories have; it begins with Triton's text."""
    return (
        f"There are {len(served)} identifiers of model '{name}' in global map, model namespace must be"
        f" provided to resolve ambiguity. Name the repository too: {' or '.join(repr(one) for one in served)}"
    )


def _no_version(name: str, version: str) -> str:
    """Returns the error message for a version or label that does not exist. Triton accepts only numbers as
    versions, and has other messages for other texts.
    """
    if version.isdecimal() and int(version) < 2**63:
        return f"Request for unknown model: '{name}' version {version} is not found"
    known = f"; '{name}' has no such version or label"
    if version.startswith("-") and version[1:].isdecimal():
        return f"invalid model version specified '{version}' , version should be an integral value > 0{known}"
    return (
        f"failed to get model version from specified version string '{version}' (details: stol), version"
        f" should be an integral value > 0{known}"
    )
