"""Changes to a server's models over HTTP: Triton's model repository extension and Backline's own routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec

from backline_client.client.control import USER_HEADER, ModelControl, user_name
from backline_client.client.http_connection import HttpAnswer
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, read_listing
from backline_client.values.control import LONGEST_PAGE, Attempt, Change, LabelMove, Overrides, Page
from backline_client.values.errors import Unsupported
from backline_client.values.tensor import Buffer

if TYPE_CHECKING:
    from backline_client.client.http_transport import HttpTransport


class HttpControl(ModelControl):
    """Sends changes over an HttpTransport. A header field names the user for the server's audit log; the
    client's own headers may set this field instead.
    """

    def __init__(self, transport: HttpTransport, url: str, options: ClientOptions) -> None:
        self._transport = transport
        self._url = url
        named = any(name.lower() == USER_HEADER for name in options.headers)
        self._user = "" if named else user_name()

    async def models(self, timeout: float) -> list[ModelIndex]:
        answer = await self._exchange("GET", "/v2/models", None, timeout)
        if answer.status == 200:
            listing = read_listing(bytes(answer.body))
            if listing is not None:
                return listing
        return await self._transport.repository_index(timeout)

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        parameters: dict[str, str | Buffer] = {}
        if overrides is not None:
            parameters = {"config": overrides.config or "{}"}
            parameters.update((f"file:{path}", content) for path, content in overrides.files.items())
        await self._send(
            "POST", _repository_path(model, version, "load"), {"parameters": parameters}, timeout
        )

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        document = {"parameters": {"unload_dependents": dependents}}
        await self._send("POST", _repository_path(model, version, "unload"), document, timeout)

    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        found = await self._ask("GET", _model_path(model, "labels"), None, timeout)
        return self._transport.read("labels", lambda: msgspec.convert(found["labels"], dict[str, str]))

    async def move_label(self, move: LabelMove, timeout: float) -> Change:
        label = _model_path(move.model, "labels", move.label)
        method, path = "POST", _model_path(move.model, move.action)
        document: dict[str, str] | None = {"version": move.version, "expected": move.expected}
        match move.action:
            case "label":
                method, path = "PUT", label
            case "unlabel":
                method, path, document = "DELETE", f"{label}?{urlencode({'expected': move.expected})}", None
            case "rollback":
                document = {"label": move.label}
        return self._change(await self._ask(method, path, document, timeout))

    async def history(self, model: str, limit: int, cursor: str, timeout: float) -> Page[Change]:
        query = {"model": model, "limit": min(limit, LONGEST_PAGE)}
        found = await self._ask("GET", _page_path("/v2/repository/history", query, cursor), None, timeout)

        def page() -> Page[Change]:
            return Page(msgspec.convert(found["changes"], list[Change]), _cursor(found))

        return self._transport.read("changes", page)

    async def audit(self, limit: int, after: float, cursor: str, timeout: float) -> Page[Change | Attempt]:
        query = {"limit": min(limit, LONGEST_PAGE), "after": after}
        found = await self._ask("GET", _page_path("/v2/audit", query, cursor), None, timeout)

        def page() -> Page[Change | Attempt]:
            entries: list[Change | Attempt] = [
                msgspec.convert(entry, Attempt) if "outcome" in entry else msgspec.convert(entry, Change)
                for entry in found["entries"]
            ]
            return Page(entries, _cursor(found))

        return self._transport.read("an audit log", page)

    async def refresh(self, timeout: float) -> None:
        await self._send("POST", "/v2/repository/refresh", None, timeout)

    def _change(self, entry: object) -> Change:
        return self._transport.read("a change", lambda: msgspec.convert(entry, Change))

    async def _ask(self, method: str, path: str, document: object, timeout: float) -> Any:
        """Sends a request, expects status 200, and returns the JSON document in the response."""
        return self._transport.document(path.encode(), await self._send(method, path, document, timeout))

    async def _send(self, method: str, path: str, document: object, timeout: float) -> HttpAnswer:
        """Sends a request and expects status 200. Raises Unsupported if the server lacks the route, and the
        server's error for any other status.
        """
        answer = await self._exchange(method, path, document, timeout)
        if answer.status != 200:
            error = self._transport.failure(answer)
            if error.message.startswith(("Not Found", "Method Not Allowed")):
                raise Unsupported(
                    f"{self._url} does not support {method} {path.partition('?')[0]}:"
                    " scans on request, and operations on individual versions, labels, the history and the"
                    " audit log, need a Backline server"
                )
            raise error
        return answer

    async def _exchange(self, method: str, path: str, document: object, timeout: float) -> HttpAnswer:
        """Sends a request and returns the response, whatever its status."""
        body = b"" if document is None else msgspec.json.encode(document)
        fields = f"{USER_HEADER}: {self._user}\r\n".encode() if self._user else b""
        return await self._transport.exchange(method.encode(), path.encode(), timeout, body, fields)


def _page_path(path: str, query: Mapping[str, object], cursor: str) -> str:
    return f"{path}?{urlencode({**query, 'cursor': cursor} if cursor else query)}"


def _cursor(found: Mapping[str, object]) -> str:
    # Earlier servers have no pages.
    return msgspec.convert(found.get("cursor", ""), str)


def _model_path(model: str, *parts: str) -> str:
    return "/v2/models/" + "/".join(quote(part, safe="") for part in (model, *parts))


def _repository_path(model: str, version: str, action: str) -> str:
    path = f"/v2/repository/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}/{action}" if version else f"{path}/{action}"
