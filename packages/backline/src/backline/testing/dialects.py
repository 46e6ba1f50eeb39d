"""Tests that every dialect passes, on a real server with a socket.

A test module names a dialect:

    class TestToy(DialectConformance):
        plugin = toy_dialect.PLUGIN
        requests = (Sample("POST", "/toy/models/double", b"[1, 2]"),)

        @classmethod
        def add_models(cls, repository):
            shutil.copytree("double", repository / "double")
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest

from backline.access.scope import EVERYBODY, Scope
from backline.dialects.plugin import DIALECTS, DialectPlugin
from backline.server import Server, ServerOptions
from backline.wire.limits import Limits
from backline_client.client.background_loop import BackgroundLoop

#: Bodies that are valid for no dialect with documents.
MALFORMED = (b"", b"{", b"\xff\xfe\x00", b"null", b'"text"', b"[" * 2000, b'{"": ' * 2000, b"0" * 5000)
KEY = "bk_conformance".ljust(46, "k")
POWERLESS = "bk_powerless".ljust(46, "k")
_MOST_BYTES = 1 << 20


class Sample(NamedTuple):
    """A request that succeeds. Without the body, it must not."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"


class Answer(NamedTuple):
    """What the server sent. The names of `fields` are in lower case."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class Running:
    """A server with one dialect, to which only the holder of KEY may send requests."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: str = KEY,
        fields: Mapping[str, str] | None = None,
    ) -> Answer:
        """Sends a request. Without `key`, the caller is unknown."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            credential = {"authorization": f"Bearer {key}"} if key else {}
            connection.request(method, path, body or None, {**credential, **(fields or {})})
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()

    def send(self, sample: Sample, **fields: str) -> Answer:
        given = {"content-type": sample.content_type, **fields}
        return self.ask(sample.method, sample.path, sample.body, fields=given)


@contextmanager
def running(plugin: DialectPlugin, repository: Path, folder: Path) -> Iterator[Running]:
    """Runs a server with the models of `repository` during the `with` block. `folder` is for its files."""
    tables = [
        f'[[keys]]\nname = "{name}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\nscopes = {scopes}\n'
        for name, key, scopes in (
            ("all", KEY, json.dumps([str(one) for one in Scope if one not in EVERYBODY])),
            ("powerless", POWERLESS, "[]"),
        )
    ]
    auth = folder / "auth.toml"
    auth.write_text("\n".join(tables))
    auth.chmod(0o600)
    options = ServerOptions(
        (repository,),
        http_port=0,
        grpc_port=None,
        metrics_port=None,
        auth=auth,
        dialects=(plugin.name,),
        limits=Limits(max_body_size=_MOST_BYTES),
    )
    loop = BackgroundLoop("conformance")
    server = loop.run(_create(options))
    try:
        loop.run(server.start())
        yield Running(int(server.urls[0][1].rpartition(":")[2]))
    finally:
        loop.run(server.stop())
        loop.close()


async def _create(options: ServerOptions) -> Server:
    return Server(options)


class DialectConformance:
    """The tests of one dialect. A subclass sets `plugin` and `requests`, and puts models into a folder."""

    plugin: DialectPlugin
    #: Requests that succeed. There should be one for each route that takes a body.
    requests: tuple[Sample, ...] = ()
    #: The names that replace `{}` in the routes: none is known to the server.
    unknown: str = "no-such-name"

    def error_text(self, answer: Answer) -> str:
        """Returns the text of an error in the form of the dialect. Fails for another form."""
        found = json.loads(answer.body)["error"]
        assert isinstance(found, str)
        return found

    @classmethod
    def add_models(cls, repository: Path) -> None:
        """Puts the models that `requests` use into a folder."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
        folder = tmp_path_factory.mktemp("conformance")
        repository = folder / "models"
        repository.mkdir()
        cls.add_models(repository)
        with running(cls.plugin, repository, folder) as server:
            yield server

    def routes(self) -> list[tuple[str, str]]:
        """The routes of the record as method and path, with `unknown` as every name."""
        given = (*self.plugin.routes, *(f"GET {one}" for one in self.plugin.websockets))
        return [(one.split(" ")[0], one.split(" ")[1].replace("{}", self.unknown)) for one in given]

    def check_refusal(self, answer: Answer) -> None:
        """Checks that an answer refuses a request, blames the client, and says why."""
        assert 400 <= answer.status < 500, answer
        text = self.error_text(answer)
        assert text, answer
        assert "Traceback" not in text
        assert "internal error" not in text

    def test_the_server_finds_the_dialect(self) -> None:
        found = DIALECTS.find(self.plugin.name, lambda record: record.name == self.plugin.name)
        assert found == self.plugin
        assert self.plugin.summary, "the record needs a summary, for tables of plug-ins"

    def test_valid_requests_succeed(self, server: Running) -> None:
        for sample in self.requests:
            answer = server.send(sample)
            assert answer.status < 300, (sample, answer)

    def test_every_route_requires_a_scope(self, server: Running) -> None:
        """A caller without scopes gets no further than routes that everybody may use, and with an unknown
        key not even there.
        """
        for method, path in self.routes():
            answer = server.ask(method, path, key=POWERLESS)
            if answer.status != 403:
                assert method in ("GET", "HEAD", "OPTIONS"), (method, path, answer)
                assert answer.status in (200, 404), (method, path, answer)
                assert server.ask(method, path, key="").status == answer.status, (method, path)
            assert server.ask(method, path, key="bk_wrong").status in (401, 404), (method, path)

    def test_unknown_names_are_refused(self, server: Running) -> None:
        for method, path in self.routes():
            if self.unknown in path:
                self.check_refusal(server.ask(method, path))

    def test_malformed_bodies_are_refused(self, server: Running) -> None:
        for sample in self.requests:
            for body in MALFORMED if sample.body else ():
                self.check_refusal(server.send(sample._replace(body=body)))

    def test_part_of_a_body_is_refused(self, server: Running) -> None:
        for sample in self.requests:
            if sample.body:
                self.check_refusal(server.send(sample._replace(body=sample.body[:-1])))

    def test_odd_queries_do_no_harm(self, server: Running) -> None:
        for sample in self.requests:
            for query in ("?", "?%ff", "?a=b&a=c&=", "?" + "x" * 2000):
                assert server.send(sample._replace(path=sample.path + query)).status < 500

    def test_large_bodies_are_refused(self, server: Running) -> None:
        for sample in self.requests:
            if sample.body:
                answer = server.send(sample._replace(body=b" " * (2 * _MOST_BYTES)))
                assert answer.status == 413, answer

    def test_head_and_options_work(self, server: Running) -> None:
        routes = self.routes()
        for method, path in routes:
            if ("OPTIONS", path) in routes:
                continue
            options = server.ask("OPTIONS", path)
            assert options.status in (204, 404), (path, options)
            if options.status == 204:
                assert method in options.fields["allow"]
            if method == "GET":
                head = server.ask("HEAD", path)
                assert head.status == server.ask("GET", path).status
                assert not head.body

    def test_other_methods_are_refused(self, server: Running) -> None:
        for _, path in self.routes():
            assert server.ask("PATCH", path).status in (404, 405)

    def test_deadlines_are_respected(self, server: Running) -> None:
        for sample in self.requests:
            if sample.body:
                answer = server.send(sample, **{"grpc-timeout": "0n"})
                assert answer.status == 504, answer
                assert self.error_text(answer)
