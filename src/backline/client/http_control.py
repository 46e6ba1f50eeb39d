"""Changes of a server's models over HTTP: Triton's model repository extension, and what Backline has beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec

from backline.client.control import ModelControl
from backline.client.errors import ProtocolError
from backline.client.identity import USER_HEADER, user_name
from backline.client.records import ModelIndex, read_listing
from backline.engine.control import Change, LabelMove, Overrides
from backline.engine.errors import BacklineError, NotFound, Unsupported

if TYPE_CHECKING:
    from backline.client.http_transport import HttpTransport


class HttpControl(ModelControl):
    """Over the connections of an HttpTransport. Who asks is named in a header, unless the client's options name somebody already."""

    def __init__(self, transport: HttpTransport, url: str, *, named: bool) -> None:
        self._transport = transport
        self._url = url
        self._who = b"" if named else f"{USER_HEADER}: {user_name()}\r\n".encode()

    async def models(self, timeout: float) -> list[ModelIndex]:
        answer = await self._transport.exchange(b"GET", b"/v2/models", timeout)
        if answer.status == 200:
            listing = read_listing(bytes(answer.body))
            if listing is not None:
                return listing
        return await self._transport.repository_index(timeout)

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        parameters: dict[str, str | bytes] = {}
        if overrides is not None:
            parameters = {"config": overrides.config or "{}"}
            parameters.update((f"file:{path}", content) for path, content in overrides.files.items())
        await self._post(_repository_path(model, version, "load"), {"parameters": parameters}, timeout)

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        await self._post(
            _repository_path(model, version, "unload"),
            {"parameters": {"unload_dependents": dependents}},
            timeout,
        )

    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        found = await self._ask(b"GET", _model_path(model, "labels"), None, timeout)
        return dict(found["labels"])

    async def move_label(self, move: LabelMove, timeout: float) -> Change:
        label = _model_path(move.model, "labels", move.label)
        target = {"version": move.version, "expected": move.expected}
        method, path, document = b"POST", _model_path(move.model, move.action), target
        match move.action:
            case "label":
                method, path = b"PUT", label
            case "unlabel":
                method, path = b"DELETE", f"{label}?{urlencode({'expected': move.expected})}"
            case "rollback":
                document = {"label": move.label}
        return self._change(await self._ask(method, path, None if method == b"DELETE" else document, timeout))

    async def history(self, model: str, limit: int, timeout: float) -> list[Change]:
        found = await self._ask(
            b"GET", f"/v2/repository/history?{urlencode({'model': model, 'limit': limit})}", None, timeout
        )
        return [self._change(entry) for entry in found["changes"]]

    async def refresh(self, timeout: float) -> None:
        await self._post("/v2/repository/refresh", None, timeout)

    def _change(self, entry: object) -> Change:
        try:
            return msgspec.convert(entry, Change)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"{self._url} sent a change that cannot be read: {error}") from None

    async def _ask(self, method: bytes, path: str, document: object, timeout: float) -> Any:
        """The document that answers. Raises Unsupported where the server has no such route: Triton knows no labels."""
        try:
            return await self._transport.json(path.encode(), timeout, method, _body(document), self._who)
        except NotFound as error:
            if error.message.startswith("Not Found"):
                raise self._unknown_route(method, path) from None
            raise
        except BacklineError as error:
            if error.message.startswith("Method Not Allowed"):
                raise self._unknown_route(method, path) from None
            raise

    async def _post(self, path: str, document: object, timeout: float) -> None:
        """For answers without a document."""
        answer = await self._transport.exchange(b"POST", path.encode(), timeout, _body(document), self._who)
        if answer.status != 200:
            error = self._transport.failure(answer)
            if isinstance(error, NotFound) and error.message.startswith("Not Found"):
                raise self._unknown_route(b"POST", path)
            raise error

    def _unknown_route(self, method: bytes, path: str) -> Unsupported:
        route = f"{method.decode()} {path.partition('?')[0]}"
        return Unsupported(
            f"{self._url} does not know {route}: single versions, labels and the history need a Backline server"
        )


def _body(document: object) -> bytes:
    return b"" if document is None else msgspec.json.encode(document)


def _model_path(model: str, *parts: str) -> str:
    return "/v2/models/" + "/".join(quote(part, safe="") for part in (model, *parts))


def _repository_path(model: str, version: str, action: str) -> str:
    path = f"/v2/repository/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}/{action}" if version else f"{path}/{action}"
