"""Reads files over HTTP with the standard library. Calls block, so they must not be made on the event
loop.
"""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from backline.repository.remote.files import Opened, Unreachable
from backline_client.values.errors import BacklineError, NotFound, Unavailable
from backline_client.version import __version__

_TIMEOUT_SECONDS: Final = 15
_CHUNK: Final = 1 << 20
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: The status codes below 500 after which a retry may succeed.
_TRANSIENT: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class WebResponse:
    """The final response after all redirects. The keys of `headers` are case-insensitive."""

    url: str
    status: int
    headers: Message
    body: IO[bytes]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


class HttpClient:
    """Sends GET and HEAD requests to one origin, and follows redirects.

    `authorization` is sent only to this origin, never to another origin to which a redirect leads. `denied`
    is the advice in the errors that are raised if access is denied.
    """

    def __init__(self, url: str, *, authorization: str = "", denied: str = "check its permissions") -> None:
        self._origin = origin(url)
        self._authorization = authorization
        self._denied = denied
        self._opener = urllib.request.build_opener(_NoRedirects)

    @contextlib.contextmanager
    def request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        also: Container[int] = (),
    ) -> Iterator[WebResponse]:
        """Yields the response after all redirects. Raises BacklineError if the status of the response is
        neither 2xx nor in `also`.
        """
        asked = url
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._open(url, method, headers or {})
            with contextlib.closing(response):
                target = response.headers.get("Location")
                if response.status in _REDIRECTS and target:
                    url = self._redirected(url, target)
                    continue
                if not (200 <= response.status < 300 or response.status in also):
                    raise self._explain(asked, url, response)
                yield WebResponse(url, response.status, response.headers, response)
                return
        raise Unavailable(
            f"'{without_secrets(asked)}' redirects more than {_MAX_REDIRECTS} times; check the URL"
        )

    def open_from(self, url: str, offset: int, check: Callable[[WebResponse], None]) -> Opened:
        """Requests `url`, and opens the body of the response from `offset` on, or from 0 if the server sends
        only whole bodies. `check` may reject the response by raising an error.
        """
        stack = contextlib.ExitStack()
        try:
            answer = stack.enter_context(
                self.request(url, headers={"Range": f"bytes={offset}-"} if offset else None)
            )
            check(answer)
        except BaseException:
            stack.close()
            raise
        partial = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {offset}-"
        )
        return Opened(offset if partial else 0, self._chunks(url, answer, stack))

    def _chunks(self, url: str, answer: WebResponse, stack: contextlib.ExitStack) -> Iterator[bytes]:
        with stack:
            try:
                while chunk := answer.body.read(_CHUNK):
                    yield chunk
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(
                    f"the response of '{without_secrets(url)}' was cut off: {_reason(error)}", 5
                ) from None

    def _open(self, url: str, method: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(
            url, method=method, headers={"User-Agent": f"backline/{__version__}", **headers}
        )
        if self._authorization and origin(url) == self._origin:
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            # An HTTPError is itself the response, with a readable body.
            return error  # type: ignore[return-value]
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(
                f"'{without_secrets(url)}' cannot be reached: {_reason(error)}; check the URL and the"
                " network",
                retry_after=5,
            ) from None
        return response

    def _redirected(self, url: str, target: str) -> str:
        joined = urljoin(url, target)
        before, after = urlsplit(url), urlsplit(joined)
        if after.scheme not in {"http", "https"} or not after.hostname:
            raise Unavailable(
                f"'{without_secrets(url)}' redirects to '{without_secrets(joined)}', which is not a web"
                " address; check the URL"
            )
        if before.scheme == "https" and after.scheme == "http":
            raise Unavailable(
                f"'{without_secrets(url)}' redirects to '{without_secrets(joined)}', which is not encrypted;"
                " use a URL that stays on https"
            )
        return joined

    def _explain(self, asked: str, url: str, response: http.client.HTTPResponse) -> BacklineError:
        place = f"'{without_secrets(asked)}'"
        if origin(url) != origin(asked):
            place += f" (redirected to {origin(url)})"
        status = response.status
        if status in {401, 403}:
            return Unavailable(f"{place}: access is denied (status {status}); {self._denied}")
        if status in {404, 410}:
            return NotFound(f"{place} does not exist (status {status}); check the URL")
        if status in _TRANSIENT or status >= 500:
            return Unreachable(
                f"{place} is not available at the moment (status {status} {response.reason}); try again"
                " later",
                5,
            )
        return Unavailable(f"{place} responds with status {status} {response.reason}; check the URL")


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def without_secrets(url: str) -> str:
    """Returns the URL without user, password and query. The query is removed because it may contain a
    signature.
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", parts.fragment))


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no response within {_TIMEOUT_SECONDS} seconds"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
