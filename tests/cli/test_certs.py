"""`backline certs`: certificates that clients and servers accept."""

from __future__ import annotations

import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509

from backline.cli.certs import command
from backline_client.client import connect
from backline_client.values.errors import BacklineError, InvalidArgument
from support import models
from support.server import serve

CHECK = ("openssl", "verify", "-x509_strict")


def create(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(command, ["create", "--out", str(folder), *options])
    if isinstance(result.exception, BacklineError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def names(folder: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_the_server_certificate_has_local_names_and_those_asked_for(tmp_path: Path) -> None:
    create(tmp_path, "--host", "10.0.0.7", "--host", "Models.Example.org", "--host", "*.example.org")
    found = names(tmp_path)
    assert found[:3] == ["localhost", "127.0.0.1", "::1"]
    assert {"10.0.0.7", "models.example.org", "*.example.org"} <= set(found)
    assert len(set(found)) == len(found)
    if socket.gethostname().isalnum():
        assert socket.gethostname().lower() in found


def test_everybody_can_read_the_certificates_but_only_the_owner_the_keys(tmp_path: Path) -> None:
    create(tmp_path / "new" / "certs", "--client", "app")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new" / "certs").iterdir()}
    assert modes == {
        **dict.fromkeys(("app.crt", "ca.crt", "server.crt"), 0o644),
        **dict.fromkeys(("app.key", "ca.key", "server.key"), 0o600),
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_finds_the_certificates_valid_for_their_purpose_only(tmp_path: Path) -> None:
    create(tmp_path, "--client", "app")
    for file, purpose, valid in (
        ("server", "sslserver", True),
        ("server", "sslclient", False),
        ("app", "sslclient", True),
        ("app", "sslserver", False),
    ):
        checked = subprocess.run(
            [*CHECK, "-purpose", purpose, "-CAfile", tmp_path / "ca.crt", tmp_path / f"{file}.crt"],
            capture_output=True,
            check=False,
        )
        assert (checked.returncode == 0) is valid, checked.stderr


def test_the_printed_commands_serve_and_connect(tmp_path: Path) -> None:
    printed = create(tmp_path / "certs", "--client", "app").splitlines()
    models.add1(tmp_path / "models")
    serving, connecting = (
        shlex.split(next(line for line in printed if line.startswith(f"  backline {word}")))
        for word in ("serve", "models")
    )
    options = serving[serving.index("--ssl-certificate") :]
    files = {
        "ca": tmp_path / "certs" / "ca.crt",
        "certificate": tmp_path / "certs" / "app.crt",
        "key": tmp_path / "certs" / "app.key",
    }
    with serve(tmp_path / "models", tmp_path / "log", *options, ready=False) as server:
        server.wait_started()
        for url in (f"https://localhost:{server.http_port}", f"grpcs://127.0.0.1:{server.grpc_port}"):
            with connect(url, **files) as client:
                assert client.live()
        listed = subprocess.run(
            [sys.executable, "-m", "backline"]
            + [word.replace(":8000", f":{server.http_port}") for word in connecting[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "add1" in listed.stdout, listed.stderr


def trusted(authority: Path, certificate: Path, key: Path) -> bool:
    """Whether a strict client that trusts the authority shakes hands with a server of this certificate."""
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(cafile=str(authority)),
    )
    server.load_cert_chain(certificate, key)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: list[Any] = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return ends[0].version() is not None


def test_an_authority_is_kept_and_the_names_of_a_renewed_certificate_too(tmp_path: Path) -> None:
    create(tmp_path, "--host", "models.example.org")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    create(tmp_path)
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"server.crt", "server.key"}
    assert "models.example.org" in names(tmp_path)
    assert trusted(tmp_path / "ca.crt", tmp_path / "server.crt", tmp_path / "server.key")


def test_a_further_client_leaves_the_server_alone(tmp_path: Path) -> None:
    create(tmp_path)
    before = (tmp_path / "server.crt").read_bytes()
    create(tmp_path, "--client", "app")
    assert (tmp_path / "server.crt").read_bytes() == before
    assert (tmp_path / "app.crt").exists()


def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    create(tmp_path / "one")
    create(tmp_path / "two")
    assert not trusted(
        tmp_path / "one" / "ca.crt", tmp_path / "two" / "server.crt", tmp_path / "two" / "server.key"
    )


def test_a_broken_authority_is_not_replaced(tmp_path: Path) -> None:
    create(tmp_path)
    certificate, key = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "ca.key").read_bytes()
    other = tmp_path / "other"
    create(other)
    for name, content, told in (
        ("ca.key", b"broken", "cannot be used"),
        ("ca.key", (other / "ca.key").read_bytes(), "is not the key"),
        ("ca.crt", None, "cannot be used"),
    ):
        (tmp_path / "ca.crt").write_bytes(certificate)
        (tmp_path / "ca.key").write_bytes(key)
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidArgument, match=told):
            create(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ("--host", "https://a"),
        ("--host", "a b"),
        ("--host", ""),
        ("--client", "ca"),
        ("--client", "server"),
        ("--client", "../app"),
        ("--client", ""),
        ("--client", "a/b"),
        ("--days", "0"),
    ],
)
def test_unusable_names_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(command, ["create", "--out", str(tmp_path / "certs"), *options])
    assert result.exit_code == 2
    assert not (tmp_path / "certs").exists()
