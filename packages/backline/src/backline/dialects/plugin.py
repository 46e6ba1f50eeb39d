"""The door for dialects: the record of one, what a dialect may use, and the built-in ones."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from backline.doors import Door, Plugin
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

if TYPE_CHECKING:
    from backline.dialects.deferred import DeferredAnswers
    from backline.dialects.forwarding import Forwarding
    from backline.dialects.router import Router
    from backline.engine.engine import Engine
    from backline.observe.recording import Recorder
    from backline.wire.application import HttpRequest, StreamMethod, UnaryMethod

log = logging.getLogger(__name__)
_ROUTE = re.compile(r"[A-Z]+ /\S*").fullmatch
#: The folder, within the state folder, of the work that dialects continue when the server starts again: a
#: folder for each dialect, with its name.
RESUMED: Final = "resumed"
#: gRPC methods by path (b"/package.Service/Method").
Methods: TypeAlias = "Mapping[bytes, UnaryMethod | StreamMethod]"


class DialectPlugin(Plugin, frozen=True, kw_only=True):
    """A dialect: the routes and gRPC services that it serves, and the class or function (`target`) that
    returns its Dialect, given a DialectContext.

    A dialect is created at the first request for one of its routes or services.
    """

    #: The HTTP routes as method and pattern, such as "POST /v1/chat" or "GET /v1/models/{}". HEAD follows
    #: from GET. Routes that other dialects have already are refused.
    routes: tuple[str, ...] = ()
    #: The patterns of the routes at which GET accepts WebSocket handshakes.
    websockets: tuple[str, ...] = ()
    #: Those of the `routes`, all GET, on which dialects of other protocols respond too. They are added with
    #: `Router.join`, and all keys are in one document.
    shared: tuple[str, ...] = ()
    #: Routes that are served only if no dialect has them among its `routes`; see `Router.expects`.
    fallbacks: tuple[str, ...] = ()
    #: The full names of the gRPC services, such as "package.Service".
    services: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [one for one in (*self.routes, *self.fallbacks) if _ROUTE(one) is None]
        wrong += [one for one in self.websockets if not one.startswith("/")]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is not a route such as 'POST /v1/chat'")

    @property
    def serves(self) -> tuple[str, ...]:
        sockets = (f"WebSocket {pattern}" for pattern in self.websockets)
        return (*self.routes, *sockets, *self.services)

    @property
    def title(self) -> str:
        return f"the dialect '{self.name}'"


class DialectContext(Struct, frozen=True, kw_only=True):
    """What a dialect may use."""

    #: Runs the models, and knows which there are.
    engine: Engine
    #: Responds to requests that need a coroutine.
    deferred: DeferredAnswers
    #: Selects the header fields and metadata that models see as parameters.
    forwarding: Forwarding
    #: Records requests for replays; None if this server cannot.
    recorder: Recorder | None = None
    #: Whether to serve pages for browsers, and the origins of pages that may show them in a frame, in the
    #: syntax of a content security policy.
    pages: bool = True
    #: The model of requests that name none; see `default_model`.
    default_model: str = ""
    #: The folder whose contents outlive the server: a dialect may keep files of its own there. None if the
    #: server keeps nothing.
    state_folder: Path | None = None
    frame_ancestors: tuple[str, ...] = ()
    #: Handles a request that was admitted earlier, or that the dialect makes itself: finds its route and
    #: calls the handler. Checks neither caller nor quotas. The request ends with its `respond` or `stream`.
    replay: Callable[[HttpRequest], None]

    def resumed_folder(self, dialect: str) -> Path | None:
        """Returns the folder in which the dialect of this name keeps work that it continues when the server
        starts again. If this folder exists, the dialect is created at the start, not on first use.
        """
        return None if self.state_folder is None else self.state_folder / RESUMED / dialect


class Dialect:
    """The base class of dialects. A dialect overrides the methods for the protocols that it serves."""

    def __init__(self, context: DialectContext) -> None:
        self.context = context

    def add_routes(self, router: Router) -> None:
        """Adds the HTTP routes of the record, with `router.add`. A dialect may leave out some of them."""

    def methods(self) -> Methods:
        """Returns the gRPC methods. All belong to services in the record."""
        return {}

    async def close(self) -> None:
        """Ends what the dialect has begun. Called when the server stops, after its connections are closed and
        its models have finished their runs.
        """


class Dialects:
    """The dialects of one server besides the Open Inference Protocol. Each is created on first use.

    `names` are those of the enabled dialects; None enables all. Without names, or with the name of an
    installed dialect, the installed distributions are scanned once, at the first request for an unknown route
    or service. The scan takes about 40 ms of the event loop; later requests for unknown routes cost nothing
    more.
    """

    def __init__(self, context: DialectContext, names: tuple[str, ...] | None = None) -> None:
        self._context = context
        self._names = names
        self._created: dict[str, Dialect] = {}
        self._services: dict[str, DialectPlugin] | None = None

    def announce_built_in(self, router: Router) -> None:
        """Announces the routes of the enabled built-in dialects."""
        for record in self._enabled(DIALECTS.built_in):
            self._announce(record, router)

    def announce_installed(self, router: Router) -> None:
        """Announces the routes of the enabled installed dialects. A dialect with a route that another one has
        is left out, with a warning.
        """
        for record in self._installed():
            try:
                self._announce(record, router)
            except ValueError as error:
                log.warning("%s is not used: %s", record.title, error)

    def resume(self) -> None:
        """Creates the enabled dialects that have work to continue; see DialectContext.resumed_folder."""
        folder = self._context.state_folder
        try:
            names = os.listdir(folder / RESUMED) if folder is not None else ()
        except (FileNotFoundError, NotADirectoryError):  # the usual case: no plug-in is imported
            return
        for record in (*self._enabled(DIALECTS.built_in), *self._installed()) if names else ():
            if record.name in names:
                self._create(record)

    async def close(self) -> None:
        """Closes the dialects that were created."""
        for dialect in self._created.values():
            try:
                await dialect.close()
            except Exception:
                log.exception("the dialect %s did not close", type(dialect).__name__)

    def _announce(self, record: DialectPlugin, router: Router) -> None:
        taken = {one for other in self._enabled(DIALECTS.built_in) for one in other.routes}
        router.announce(
            record.title,
            (*record.routes, *(one for one in record.fallbacks if one not in taken)),
            lambda to: self._create(record).add_routes(to),
            record.websockets,
            record.shared,
        )

    def methods_of(self, service: str) -> Methods:
        """Returns the methods of a gRPC service; empty if no enabled dialect serves it.

        Raises ValueError if the dialect returns a method of a service that its record does not name.
        """
        if self._services is None:
            records = (*self._enabled(DIALECTS.built_in), *self._installed())
            self._services = {one: record for record in reversed(records) for one in record.services}
        record = self._services.get(service)
        if record is None:
            return {}
        methods = self._create(record).methods()
        for path in methods:
            if path[1:].partition(b"/")[0].decode() not in record.services:
                raise ValueError(f"{path.decode()} is not of a service of the record of {record.title}")
        return {path: one for path, one in methods.items() if path.startswith(b"/%b/" % service.encode())}

    def _create(self, record: DialectPlugin) -> Dialect:
        created = self._created.get(record.target)
        if created is None:
            created = self._created[record.target] = record.load()(self._context)
        return created

    def _enabled(self, records: tuple[DialectPlugin, ...]) -> tuple[DialectPlugin, ...]:
        return tuple(one for one in records if self._names is None or one.name in self._names)

    def _installed(self) -> tuple[DialectPlugin, ...]:
        if self._names is not None and not self._names_installed():
            return ()
        for one in DIALECTS.installed:
            if one.problem:
                log.warning("%s", one.problem)
        return self._enabled(DIALECTS.further)

    def _names_installed(self) -> bool:
        built_in = {one.name for one in DIALECTS.built_in}
        return not built_in.issuperset(self._names or ())


def check_dialects(names: tuple[str, ...]) -> None:
    """Raises InvalidArgument if there is no dialect with one of these names."""
    for name in names:
        if DIALECTS.find(name, lambda record: record.name == name) is None:  # noqa: B023
            known = [one.name for one in DIALECTS.all]
            near = nearest(name, known)
            advice = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"
            raise InvalidArgument(f"there is no dialect '{name[:64]}'; {advice}")


#: The built-in dialects besides the Open Inference Protocol, which is part of the core.
DIALECTS: Final = Door(
    "backline.dialects",
    DialectPlugin,
    (
        "backline.plugins.dialects.plain",
        "backline.plugins.dialects.sagemaker",  # before TorchServe: /models/{}/invoke
        "backline.plugins.dialects.tensorflow_serving",
        "backline.plugins.dialects.openai",
        "backline.plugins.dialects.torchserve",
        "backline.plugins.dialects.openapi",
        "backline.plugins.dialects.console",
        "backline.plugins.traffic",
        "backline.plugins.dialects.jobs",
    ),
)
