"""Reads the scaling signals of servers, and scales a deployment of Ray Serve accordingly."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backline.observe.scaling import ScalingSignal
from backline_client.client.address import Address, resolve
from backline_client.client.errors import PermissionDenied
from backline_client.values.errors import InvalidArgument, Unavailable

log = logging.getLogger("backline.plugins.ray")

_METRIC = re.compile(rb"^(backline_utilisation|backline_desired_replicas) (\S+)$", re.MULTILINE)
#: Maximum time in seconds for a server to report its signal, and for Ray Serve to respond.
_SIGNAL_TIMEOUT = 1.0
_SERVE_TIMEOUT = 10.0


def read_signal(server: str, headers: Mapping[str, str] | None = None) -> ScalingSignal:
    """Returns the signal of the server at an http or https URL.

    Raises OSError if the server cannot be reached, refuses the request or does not complete its response, and
    ValueError if the server reports no signal.
    """
    request = urllib.request.Request(f"{server}/metrics", headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=_SIGNAL_TIMEOUT) as page:
            text = page.read()
    except http.client.HTTPException as error:
        raise OSError(f"the response of {server} is incomplete, or is not HTTP: {error!r}") from None
    found = {name.decode(): float(value) for name, value in _METRIC.findall(text)}
    numbers = [found.get(name, math.nan) for name in ("backline_utilisation", "backline_desired_replicas")]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("/metrics has no metrics for autoscalers, or one of them is not a finite number")
    return ScalingSignal(*numbers)


def serve_replicas(
    current: int, signals: Sequence[ScalingSignal], *, missing: bool, least: int, most: int
) -> int:
    """Returns how many replicas a deployment should have if it has `current` replicas now.

    Each server reports the factor by which the number should change; the mean of these factors applies to the
    deployment. The number is not lowered while some servers are `missing`, because their share of the load is
    unknown.
    """
    factor = sum(one.desired_replicas for one in signals) / len(signals)
    wanted = math.ceil(current * factor - 1e-9)
    return min(max(wanted, current if missing else 0, least), most)


@dataclass(frozen=True, slots=True)
class ServeScaler:
    """A scaler that adapts the number of replicas of a Ray Serve deployment to the load of Backline servers.
    It uses Ray Serve's webhook for external scaling.

    `servers` contains the URLs of the Backline servers, as for `connect`: http://a:8000,http://b:8000,
    dns+http://name:8000 or ray://name. These servers may run in the replicas of the Serve deployment, or
    serve the models that the deployment calls. The application must set `external_scaler_enabled`, which
    excludes Serve's own autoscaling. `dashboard` is the URL of Ray's dashboard. `token` is Ray's token, by
    default the one that Ray itself would use. `headers` are sent with each request to the servers, for
    example to pass a key.
    """

    application: str
    deployment: str
    servers: str
    min_replicas: int = 1
    max_replicas: int = 1
    dashboard: str = "http://127.0.0.1:8265"
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises InvalidArgument for invalid URLs and numbers."""
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise InvalidArgument(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}: expected at least"
                " 1, and max_replicas not below min_replicas"
            )
        if any(
            not one.server.startswith("http") and not one.by_ray for one in Address.parse_all(self.servers)
        ):
            raise InvalidArgument(
                f"'{self.servers}': expected URLs that start with http, grpc, dns+http, dns+grpc or ray"
            )

    def run(self, interval: float = 15.0) -> None:
        """Adjusts the number of replicas every `interval` seconds, until the program is interrupted.

        If Ray or the servers do not respond, tries again after the same interval. Raises InvalidArgument and
        PermissionDenied as `step` does.
        """
        while True:
            try:
                self.step()
            except Unavailable as error:
                log.warning("the number of replicas stays as it is: %s", error.message)
            time.sleep(interval)

    def step(self) -> int:
        """Adjusts the number of replicas once, and returns the new number.

        Raises Unavailable if Ray does not respond, if no server reports its load, or if a host name is
        unknown; InvalidArgument if Ray Serve has no such deployment or does not permit external scaling; and
        PermissionDenied if Ray refuses the token.
        """
        signals: list[ScalingSignal] = []
        addresses = asyncio.run(_resolve_all(self.servers))
        for address in addresses:
            try:
                signals.append(read_signal(address.server, self.headers))
            except (OSError, ValueError) as error:
                log.warning("%s does not report its load: %r", address.server, error)
        if not signals:
            raise Unavailable(f"no server of '{self.servers}' reports its load")
        current = self._current()
        wanted = serve_replicas(
            current,
            signals,
            missing=len(signals) < len(addresses),
            least=self.min_replicas,
            most=self.max_replicas,
        )
        if wanted != current:
            application, deployment = (quote(one, safe="") for one in (self.application, self.deployment))
            path = f"/api/v1/applications/{application}/deployments/{deployment}/scale"
            self._ask(path, {"target_num_replicas": wanted})
            log.info(
                "%s of %s: %d replicas instead of %d", self.deployment, self.application, wanted, current
            )
        return wanted

    def _current(self) -> int:
        """Returns the target number of replicas that Ray Serve has set for the deployment."""
        running = self._ask("/api/serve/applications/").get("applications", {})
        application = running.get(self.application)
        if application is None:
            raise InvalidArgument(
                f"Ray Serve runs no application '{self.application}'; its applications are"
                f" {', '.join(sorted(running)) or '(none)'}"
            )
        deployments = application.get("deployments", {})
        if self.deployment not in deployments:
            raise InvalidArgument(
                f"the application '{self.application}' has no deployment '{self.deployment}'; its deployments"
                f" are {', '.join(sorted(deployments)) or '(none)'}"
            )
        if not application.get("external_scaler_enabled"):
            raise InvalidArgument(
                f"the application '{self.application}' can be scaled only by Ray Serve itself: to change"
                " that, deploy it without autoscaling_config and set external_scaler_enabled to true"
            )
        return int(deployments[self.deployment]["target_num_replicas"])

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        token = _own_token() if self.token is None else self.token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.dashboard.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=_SERVE_TIMEOUT) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            reason = _text_of(error) or error.reason
            if error.code in (401, 403):
                raise PermissionDenied(
                    f"Ray at {self.dashboard} refuses the token: pass token, or set RAY_AUTH_TOKEN ({reason})"
                ) from None
            raise Unavailable(f"Ray at {self.dashboard} answered {error.code}: {reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unavailable(
                f"Ray's dashboard at {self.dashboard} does not respond: {error}. Is the address right?"
            ) from None


async def _resolve_all(urls: str) -> list[Address]:
    # Not over Unix sockets, which urllib does not support.
    return [one for address in Address.parse_all(urls) for one in await resolve(address, near=False)]


def _text_of(error: urllib.error.HTTPError) -> str:
    """Returns the beginning of the response's body, or "" if the body does not arrive."""
    with suppress(OSError, http.client.HTTPException):
        return error.read(1000).decode(errors="replace").strip()
    return ""


def _own_token() -> str:
    """Returns the token that Ray uses: the value of RAY_AUTH_TOKEN, or else the contents of Ray's token file.

    Returns "" if there is no token.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text().strip() if file.is_file() else ""
