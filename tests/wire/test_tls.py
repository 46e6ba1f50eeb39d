"""TLS listeners, with certificates made by the openssl command."""

from __future__ import annotations

import gc
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from backline.system import file_watch
from backline.wire.listener import TlsAcceptor
from backline.wire.tls import ClientAuth, TlsFileError, TlsFiles
from support.authority import Authority
from support.waiting import until

from .conftest import WireServer, read_answer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
Start = Callable[..., WireServer]
GET = b"GET /dump HTTP/1.1\r\nHost: a\r\n\r\n"
HELD = GET.replace(b"dump", b"held")


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    command += " -addext subjectAltName=DNS:localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = make_certificate(folder, "server")
    client_certificate, client_key = make_certificate(folder, "client")
    return {
        "certificate": certificate,
        "key": key,
        "client_certificate": client_certificate,
        "client_key": client_key,
    }


def trusting(files: dict[str, Path], *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files["certificate"]))
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def connect_tls(server: WireServer, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(server.connect(), server_hostname="localhost")


@pytest.mark.parametrize("size", [5, 602_112, 5_000_000])
def test_bodies_are_echoed_over_tls(start: Start, files: dict[str, Path], size: int) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    client = http.client.HTTPSConnection("localhost", server.port, timeout=20, context=trusting(files))
    client.sock = connect_tls(server, trusting(files))
    sent = os.urandom(size)
    for _ in range(2):
        client.request("POST", "/echo", sent)
        assert client.getresponse().read() == sent
    client.close()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["other"], None), ([], None)],
)
def test_alpn_prefers_h2(
    start: Start, files: dict[str, Path], offered: list[str], chosen: str | None
) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    with connect_tls(server, trusting(files, *offered)) as client:
        assert client.selected_alpn_protocol() == chosen


def test_alpn_h2_client_gets_settings_before_its_preface(start: Start, files: dict[str, Path]) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    with connect_tls(server, trusting(files, "h2")) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        assert client.recv(100)[3] == 4


@pytest.mark.parametrize("loop_name", ["uvloop"])  # asyncio's TLS transports have cycles themselves
@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_a_closed_connection_is_freed_before_the_cycle_collector_runs(
    start: Start, files: dict[str, Path], protocol: str
) -> None:
    """A client that closes amid its requests leaves up to a megabyte of unread input."""
    server = start(TlsFiles(files["certificate"], files["key"]))

    def alive() -> int:
        return sum(type(one) is ssl.SSLObject for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        with connect_tls(server, trusting(files, protocol)) as client:
            if protocol == "h2":
                client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            else:
                client.sendall(GET)
            assert client.recv(100)
            assert alive() == before + 1
        until(lambda: alive() == before, lambda: f"{alive() - before} connections are not freed")
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused(start: Start, files: dict[str, Path]) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    context = trusting(files)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        connect_tls(server, context)


def test_a_passed_socket_only_for_metrics_has_no_tls(start: Start, files: dict[str, Path]) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()

    url = server.wait(server.listeners.open_passed(listening, metrics_only=True))

    assert url == f"http://127.0.0.1:{address[1]}"
    with socket.create_connection(address, 10) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200


def test_plaintext_on_a_tls_port_is_closed_and_the_server_survives(
    start: Start, files: dict[str, Path]
) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    assert b"HTTP/1.1" not in server.send(GET)
    with connect_tls(server, trusting(files)) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200


def test_silent_client_is_closed_during_the_handshake(start: Start, files: dict[str, Path]) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]), header_timeout=0.3)
    assert server.send(b"") == b""


def test_connections_in_their_handshake_count_toward_the_limit(start: Start, files: dict[str, Path]) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]), max_connections=3)
    held = [server.connect() for _ in range(3)]
    assert server.send(b"") == b""
    for client in held:
        client.close()


def test_one_address_cannot_use_all_connections_before_their_handshake(
    start: Start, files: dict[str, Path]
) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]), max_connections=4, max_peer_share=0.5)
    with server.connect() as silent, connect_tls(server, trusting(files)) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200
        assert server.send(b"") == b""  # closed at once
        silent.close()
        acceptor = server.listeners._servers[0]
        assert isinstance(acceptor, TlsAcceptor)
        server.until(lambda: not acceptor._peer_of)
        with connect_tls(server, trusting(files)) as later:
            later.sendall(GET)
            assert read_answer(later)[0] == 200
    server.until(lambda: not acceptor._waiting)


def test_a_client_that_has_sent_nothing_costs_no_handshake(
    start: Start, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    shake_hands = TlsAcceptor._shake_hands

    async def noted(self: TlsAcceptor, accepted: socket.socket, timeout: float) -> None:
        begun.append(timeout)
        await shake_hands(self, accepted, timeout)

    monkeypatch.setattr(TlsAcceptor, "_shake_hands", noted)
    server = start(TlsFiles(files["certificate"], files["key"]))
    silent = [server.connect() for _ in range(20)]
    with connect_tls(server, trusting(files)) as client:  # accepted after all of these
        client.sendall(GET)
        assert read_answer(client)[0] == 200
    assert len(begun) == 1
    silent[0].close()  # without a word
    with trusting(files).wrap_socket(silent[1], server_hostname="localhost") as late:
        late.sendall(GET)
        assert read_answer(late)[0] == 200
    assert len(begun) == 2
    for one in silent[2:]:
        one.close()


def test_one_handshake_begins_in_each_turn_of_the_loop(
    start: Start, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    begun_in: list[int] = []
    begin_next = TlsAcceptor._begin_next

    def end_turn() -> None:
        nonlocal turn
        turn += 1

    def noted(self: TlsAcceptor) -> None:
        self._wire.loop.call_soon(end_turn)
        before = len(self._greeted)
        begin_next(self)
        begun_in.extend([turn] * (before - len(self._greeted)))

    monkeypatch.setattr(TlsAcceptor, "_begin_next", noted)
    server = start(TlsFiles(files["certificate"], files["key"]))
    blocked = threading.Event()
    server.loop.call_soon_threadsafe(blocked.wait)
    clients = [
        trusting(files).wrap_socket(
            server.connect(), server_hostname="localhost", do_handshake_on_connect=False
        )
        for _ in range(16)
    ]
    for client in clients:
        client.setblocking(False)
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()  # sends its first message only
    blocked.set()
    for client in clients:
        client.settimeout(20)
        client.do_handshake()
        client.sendall(GET)
        assert read_answer(client)[0] == 200
        client.close()
    assert len(set(begun_in)) == len(begun_in) == len(clients)


def test_mutual_tls_admits_only_clients_with_a_certificate(start: Start, files: dict[str, Path]) -> None:
    server = start(TlsFiles(files["certificate"], files["key"], files["client_certificate"]))
    known = trusting(files)
    known.load_cert_chain(files["client_certificate"], files["client_key"])
    with connect_tls(server, known) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200
    assert ask_and_read(server, trusting(files)) == b""


def ask_and_read(server: WireServer, context: ssl.SSLContext) -> bytes:
    """The server's response. In TLS 1.3 a refusal follows the handshake, as an alert, a reset or an EOF."""
    try:
        with connect_tls(server, context) as client:
            client.sendall(GET)
            return client.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_over_tls(start: Start, files: dict[str, Path], version: str) -> None:
    server = start(TlsFiles(files["certificate"], files["key"]))
    command = [
        "curl",
        "-sS",
        version,
        "--cacert",
        str(files["certificate"]),
        "-d",
        "hello",
        f"https://localhost:{server.port}/echo",
    ]
    assert subprocess.run(command, capture_output=True, check=True, timeout=20).stdout == b"hello"


def test_invalid_files_are_errors_that_name_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("not PEM")
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "ec", "-in", files["key"], "-aes256", "-passout", "pass:secret", "-out", encrypted],
        check=True,
        capture_output=True,
    )
    certificate, key = files["certificate"], files["key"]
    cases = [
        (TlsFiles(missing, key), f"certificate '{missing}' cannot be read: No such file"),
        (TlsFiles(certificate, missing), f"key '{missing}' cannot be read: No such file"),
        (TlsFiles(text, key), f"certificate '{text}' holds no certificate"),
        (TlsFiles(certificate, text), f"key '{text}' holds no private key"),
        (
            TlsFiles(certificate, files["client_key"]),
            f"key '{files['client_key']}' does not belong to the certificate",
        ),
        (TlsFiles(certificate, encrypted), f"key '{encrypted}' is encrypted"),
        (TlsFiles(certificate, key, missing), f"client CA '{missing}' cannot be read"),
        (TlsFiles(certificate, key, text), f"client CA '{text}' holds no certificate"),
    ]
    for wrong, message in cases:
        with pytest.raises(TlsFileError, match="TLS") as caught:
            wrong.context()
        assert message in str(caught.value)


def ask_openssl(server: WireServer, *options: str) -> str:
    """What `openssl s_client` says about a handshake. Security level 0 lets it offer everything."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-brief", *options]
    return subprocess.run(
        command, input="", capture_output=True, text=True, timeout=20, check=False
    ).stderr.strip()


def was_refused(told: str) -> bool:
    """Whether the server, not openssl, ended the handshake: with an alert, which asyncio may drop, or EOF."""
    return "Ciphersuite" not in told and ("alert" in told or "unexpected eof" in told)


@pytest.fixture(scope="module")
def rsa_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    issued = Authority(tmp_path_factory.mktemp("rsa")).issue("server", rsa_key=True)
    return TlsFiles(issued.certificate, issued.key)


@pytest.mark.parametrize(
    "suite",
    [
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    ],
)
def test_tls_1_2_has_authenticated_encryption_with_forward_secrecy(
    start: Start, files: dict[str, Path], rsa_files: TlsFiles, suite: str
) -> None:
    server = start(rsa_files if "RSA-" in suite else TlsFiles(files["certificate"], files["key"]))
    assert f"Ciphersuite: {suite}" in ask_openssl(server, "-tls1_2", "-cipher", suite)


@pytest.mark.parametrize(
    "suites",
    [
        "ECDHE-RSA-AES128-SHA256:ECDHE-RSA-AES256-SHA384",  # CBC
        "ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA",  # CBC with SHA-1
        "AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA",  # no forward secrecy
        "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384",
        "AECDH-AES128-SHA:ADH-AES128-GCM-SHA256",  # no certificate
        "ECDHE-RSA-NULL-SHA:NULL-SHA256",
    ],
)
def test_other_suites_of_tls_1_2_are_refused(start: Start, rsa_files: TlsFiles, suites: str) -> None:
    told = ask_openssl(start(rsa_files), "-tls1_2", "-cipher", f"{suites}:@SECLEVEL=0")
    assert was_refused(told), told


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_openssl_cannot_speak_earlier_versions(start: Start, rsa_files: TlsFiles, version: str) -> None:
    told = ask_openssl(start(rsa_files), version, "-cipher", "ALL:@SECLEVEL=0")
    assert was_refused(told), told


def test_sha_1_signatures_are_refused(start: Start, rsa_files: TlsFiles) -> None:
    server = start(rsa_files)
    given = ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0", "-sigalgs")
    assert was_refused(ask_openssl(server, *given, "RSA+SHA1"))
    assert "Ciphersuite" in ask_openssl(server, *given, "RSA+SHA256")


def test_openssl_gets_tls_1_3(start: Start, rsa_files: TlsFiles) -> None:
    assert "Protocol version: TLSv1.3" in ask_openssl(start(rsa_files))


def presented(server: WireServer) -> bytes:
    """The certificate that a new connection gets, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect_tls(server, context) as client:
        got = client.getpeercert(binary_form=True)
    assert got is not None
    return got


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_a_replaced_certificate_is_used_for_new_connections_and_open_ones_stay(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "WATCH_INTERVAL", 0.01)
    authority = Authority(tmp_path)
    now = authority.issue("server")
    server = start(TlsFiles(now.certificate, now.key))
    first = der(now.certificate)
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with connect_tls(server, context) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200
        assert presented(server) == first
        authority.issue("server")
        second = der(now.certificate)
        until(lambda: presented(server) != first)
        assert presented(server) == second
        client.sendall(GET)
        assert read_answer(client)[0] == 200
        assert client.getpeercert(binary_form=True) == first


def test_a_broken_new_file_keeps_the_certificate_until_it_is_repaired(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "WATCH_INTERVAL", 0.01)
    authority = Authority(tmp_path)
    now, new = authority.issue("server"), authority.issue("new")
    server = start(TlsFiles(now.certificate, now.key))
    first = der(now.certificate)
    for break_it, told in (
        (lambda: now.key.write_bytes(new.key.read_bytes()), "does not belong to the certificate"),
        (lambda: now.key.write_text("-----BEGIN PRIV"), "holds no private key"),
        (now.key.unlink, "cannot be read"),
    ):
        break_it()
        until(lambda told=told: told in caplog.text)  # type: ignore[misc]
        assert presented(server) == first
    assert all(record.levelname == "ERROR" for record in caplog.records)
    assert caplog.text.count("new connections still get the previous certificate") == 3
    now.certificate.write_bytes(new.certificate.read_bytes())
    now.key.write_bytes(new.key.read_bytes())
    until(lambda: presented(server) == der(new.certificate))


def test_a_replaced_client_authority_decides_about_new_connections(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "WATCH_INTERVAL", 0.01)
    mine, other = Authority(tmp_path / "mine"), Authority(tmp_path / "other")
    issued, client = mine.issue("server"), other.issue("client")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(mine.certificate.read_bytes())
    server = start(TlsFiles(issued.certificate, issued.key, trusted))
    context = ssl.create_default_context(cafile=str(mine.certificate))
    context.load_cert_chain(client.certificate, client.key)
    assert ask_and_read(server, context) == b""
    trusted.write_bytes(other.certificate.read_bytes())
    until(lambda: ask_and_read(server, context).startswith(b"HTTP/1.1 200"))


@pytest.mark.parametrize("client_auth", ["required", "optional"])
def test_a_request_knows_the_certificate_of_its_client(
    start: Start, tmp_path: Path, client_auth: ClientAuth
) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("server")
    names = (
        x509.DNSName("App.example.org"),
        x509.RFC822Name("app@example.org"),
        x509.UniformResourceIdentifier("spiffe://example.org/app"),
        x509.IPAddress(ip_address("10.0.0.7")),
    )
    presented = authority.issue("app", *names, organization="Example, Inc.")
    server = start(TlsFiles(issued.certificate, issued.key, authority.certificate, client_auth))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(presented.certificate, presented.key)
    with connect_tls(server, context) as client:
        client.sendall(HELD)
        assert server.echo.arrived.acquire(timeout=10)
        found = server.echo.held[0].certificate
        assert found is not None
        assert found.subject == {"CN=app", "O=Example, Inc."}
        assert found.names == {
            "DNS:app.example.org",
            "email:app@example.org",
            "URI:spiffe://example.org/app",
            "IP Address:10.0.0.7",
        }
        assert 1.9 < (found.expires - time.time()) / 86400 < 2.1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_keeps_the_certificate_of_its_client(
    start: Start, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    authority = Authority(tmp_path)
    issued, presented = authority.issue("server"), authority.issue("app")
    server = start(TlsFiles(issued.certificate, issued.key, authority.certificate, "optional"))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(presented.certificate, presented.key)
    context.minimum_version = context.maximum_version = version
    session = None
    for resumed in (False, True):
        with context.wrap_socket(server.connect(), server_hostname="localhost", session=session) as client:
            assert client.session_reused is resumed
            client.sendall(HELD)
            assert server.echo.arrived.acquire(timeout=10)
            found = server.echo.held[-1].certificate
            assert found is not None
            assert "CN=app" in found.subject
            server.release(server.echo.held[-1])
            assert read_answer(client)[0] == 200
            session = client.session


def test_an_optional_certificate_may_be_missing_but_not_be_foreign(start: Start, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "mine"), Authority(tmp_path / "other")
    issued, foreign = authority.issue("server"), other.issue("client")
    server = start(TlsFiles(issued.certificate, issued.key, authority.certificate, "optional"))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with connect_tls(server, context) as client:
        client.sendall(HELD)
        assert server.echo.arrived.acquire(timeout=10)
        assert server.echo.held[0].certificate is None
    context.load_cert_chain(foreign.certificate, foreign.key)
    assert ask_and_read(server, context) == b""
