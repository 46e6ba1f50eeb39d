"""Scaling a deployment of Ray Serve by the load of servers, with a stand-in for Ray's dashboard."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from backline.observe.scaling import ScalingSignal
from backline.plugins.ray import ServeScaler
from backline.plugins.ray.scaling import serve_replicas
from backline_client.client import ray_directory
from backline_client.client.errors import InvalidArgument, PermissionDenied, Unavailable
from backline_client.client.ray_directory import ReplicaDirectory
from support.web import Page, WebServer


class Dashboard:
    """Answers as Ray's dashboard while Serve runs the application `shop` with the deployment `Offers`."""

    def __init__(self) -> None:
        self.replicas, self.external, self.token = 2, True, ""
        dashboard = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                application = {
                    "external_scaler_enabled": dashboard.external,
                    "deployments": {"Offers": {"target_num_replicas": dashboard.replicas}},
                }
                self._answer({"applications": {"shop": application}})

            def do_POST(self) -> None:
                assert self.path == "/api/v1/applications/shop/deployments/Offers/scale"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not dashboard.token or self._authorized:
                    dashboard.replicas = body["target_num_replicas"]
                self._answer({"message": "received"})

            @property
            def _authorized(self) -> bool:
                return self.headers.get("Authorization") == f"Bearer {dashboard.token}"

            def _answer(self, answer: dict[str, Any]) -> None:
                refused = bool(dashboard.token) and not self._authorized
                self.send_response(401 if refused else 200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    made = Dashboard()
    yield made
    made.close()


@pytest.fixture
def servers() -> Iterator[tuple[WebServer, WebServer]]:
    with WebServer() as one, WebServer() as other:
        yield one, other


def report(server: WebServer, desired: float) -> None:
    metrics = f"# TYPE x gauge\nbackline_utilisation {desired}\nbackline_desired_replicas {desired}\n"
    server.put("/metrics", metrics.encode())


def scaler(dashboard: Dashboard, servers: tuple[WebServer, ...], **changes: Any) -> ServeScaler:
    options = {"max_replicas": 8, "dashboard": dashboard.url, "token": "", **changes}
    return ServeScaler("shop", "Offers", ",".join(one.url for one in servers), **options)


def signals(*desired: float) -> list[ScalingSignal]:
    return [ScalingSignal(one, one) for one in desired]


@pytest.mark.parametrize(
    ("current", "desired", "missing", "expected"),
    [
        (2, (1.0, 1.0), False, 2),
        (2, (1.2, 1.2), False, 3),
        (4, (2.0,), False, 8),
        (4, (0.5, 0.5), False, 2),
        (4, (0.5,), True, 4),
        (4, (1.5,), True, 6),
        (8, (2.0,), False, 9),
        (1, (0.5,), False, 1),
        (0, (1.0,), False, 1),
    ],
)
def test_the_factor_of_the_servers_is_that_of_the_replicas(
    current: int, desired: tuple[float, ...], missing: bool, expected: int
) -> None:
    assert serve_replicas(current, signals(*desired), missing=missing, least=1, most=9) == expected


def test_the_load_changes_the_number_of_replicas(
    dashboard: Dashboard, servers: tuple[WebServer, WebServer]
) -> None:
    scaling = scaler(dashboard, servers)
    for server in servers:
        report(server, 1.5)
    assert (scaling.step(), dashboard.replicas) == (3, 3)

    report(servers[0], 0.5)
    report(servers[1], 0.8)
    assert (scaling.step(), dashboard.replicas) == (2, 2)


def test_the_load_of_a_replica_on_the_same_node_is_read_although_it_has_a_unix_socket(
    dashboard: Dashboard,
    servers: tuple[WebServer, WebServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    report(servers[0], 1.5)
    replica = servers[0].url.replace("http", "grpc", 1)
    socket = tmp_path / "socket"
    socket.touch()
    found = ReplicaDirectory(((replica, frozenset("m")),), False, ((replica, "node", str(socket)),))
    monkeypatch.setitem(ray_directory._found, "d", (monotonic() + 100, found))
    monkeypatch.setattr(ray_directory, "_node", lambda: "node")

    options: dict[str, Any] = {"max_replicas": 8, "dashboard": dashboard.url, "token": ""}
    assert ServeScaler("shop", "Offers", "ray://d", **options).step() == 3


def test_a_server_that_does_not_report_keeps_the_number_from_falling(
    dashboard: Dashboard, servers: tuple[WebServer, WebServer]
) -> None:
    report(servers[0], 0.5)

    assert scaler(dashboard, servers).step() == 2
    with pytest.raises(Unavailable, match=r"no server of .* reports its load"):
        scaler(dashboard, servers[1:]).step()


@pytest.mark.parametrize(
    "page",
    [
        Page(b"backline_utilisation 0.5\nbackline_desired_replicas 0.5\n", cuts=[30]),
        Page(b"backline_utilisation 0.5\nbackline_desired_replicas NaN\n"),
        Page(b"backline_utilisation 0.5\nbackline_desired_replicas many\n"),
        Page(b"backline_utilisation 0.5\n"),
    ],
    ids=["cut", "nan", "text", "missing"],
)
def test_a_server_that_reports_nonsense_counts_as_missing(
    dashboard: Dashboard, servers: tuple[WebServer, WebServer], page: Page
) -> None:
    report(servers[0], 0.5)
    servers[1].pages["/metrics"] = page

    assert scaler(dashboard, servers).step() == 2


def test_the_token_and_the_key_are_sent(
    dashboard: Dashboard, servers: tuple[WebServer, WebServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.token = "t0ken"
    report(servers[0], 1.5)
    with pytest.raises(PermissionDenied, match="set RAY_AUTH_TOKEN"):
        scaler(dashboard, servers[:1]).step()

    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    scaler(dashboard, servers[:1], token=None, headers={"Authorization": "Bearer key"}).step()

    assert dashboard.replicas == 3
    assert servers[0].asked[-1].headers["authorization"] == "Bearer key"


def test_what_cannot_be_scaled_is_explained(
    dashboard: Dashboard, servers: tuple[WebServer, WebServer]
) -> None:
    report(servers[0], 1.5)
    url = servers[0].url
    dashboard.external = False
    with pytest.raises(InvalidArgument, match="set external_scaler_enabled to true"):
        scaler(dashboard, servers[:1]).step()
    with pytest.raises(InvalidArgument, match=r"no application 'other'; its applications are shop$"):
        ServeScaler("other", "Offers", url, dashboard=dashboard.url, token="").step()
    with pytest.raises(InvalidArgument, match=r"has no deployment 'Other'; its deployments are Offers$"):
        ServeScaler("shop", "Other", url, dashboard=dashboard.url, token="").step()
    with pytest.raises(Unavailable, match="Is the address right"):
        ServeScaler("shop", "Offers", url, dashboard="http://127.0.0.1:1").step()
    with pytest.raises(InvalidArgument, match="max_replicas not below min_replicas"):
        ServeScaler("shop", "Offers", url, min_replicas=2)
    with pytest.raises(InvalidArgument, match="expected URLs that start with http"):
        ServeScaler("shop", "Offers", "unix:/run/backline.sock")
