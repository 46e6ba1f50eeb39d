"""`backline certs`: creates certificates for development, and the certificate authority that signs them."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backline.access.browsers import parse_host_name
from backline.cli.command import CommandGroup
from backline.cli.numbers import WholeNumber
from backline_client.system.private_file import replacement
from backline_client.values.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_AUTHORITY = "ca"
_SERVER = "server"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Days for which the CA certificate is valid. This is longer than for other certificates, because each client
#: must install a new CA certificate before it trusts the certificates that the CA signs.
_AUTHORITY_DAYS = 3650
_CLIENT = re.compile(r"[A-Za-z0-9_][\w.@+-]{0,63}", re.ASCII)


def _host_name(text: str) -> str:
    """Returns an IP address or host name in its standard spelling. Raises InvalidArgument for other text."""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        return parse_host_name(text)


def _machine_names() -> list[str]:
    """Returns the machine's short and fully qualified names, except names that are not valid host names."""
    names = []
    for name in (socket.gethostname(), socket.getfqdn()):
        try:
            names.append(_host_name(name))
        except InvalidArgument:
            continue
    return names


class _Folder:
    """The certificates in a folder: that of a certificate authority (CA), and those that the CA signed."""

    def __init__(self, folder: Path) -> None:
        """Opens or creates the folder and its CA.

        Raises InvalidArgument if the CA cannot be used, and Unsupported if the package cryptography is
        missing.
        """
        try:
            import cryptography  # noqa: F401
        except ImportError:
            raise Unsupported(
                "creating certificates needs cryptography: pip install 'backline[auth]'"
            ) from None
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.is_new = not (self.certificate(_AUTHORITY).exists() or self.key(_AUTHORITY).exists())
        if self.is_new:
            self._create_authority()
        else:
            self._read_authority()

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def _create_authority(self) -> None:
        from cryptography import x509

        self._key = _new_key()
        self._name = _subject(f"Backline development authority of {socket.gethostname()}"[:64])
        signed = (
            _builder(self._name, self._name, self._key, _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        self._save(_AUTHORITY, self._key, _sign(signed, self._key))

    def _read_authority(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        elsewhere = (
            f"choose another folder with --out, or remove {_AUTHORITY}.crt and {_AUTHORITY}.key to create a"
            " new CA"
        )
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate(_AUTHORITY).read_bytes())
            key = load_pem_private_key(self.key(_AUTHORITY).read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidArgument(f"the CA in '{self.folder}' cannot be used: {error}; {elsewhere}") from None
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InvalidArgument(
                f"'{self.key(_AUTHORITY)}' is not the key that this command created for"
                f" '{self.certificate(_AUTHORITY)}'; {elsewhere}"
            )
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            raise InvalidArgument(f"the CA in '{self.folder}' has expired; {elsewhere}")
        self._key, self._name = key, certificate.subject

    def server_names(self) -> list[str]:
        """Returns the names in the server's certificate; empty if there is no readable certificate."""
        from cryptography import x509

        try:
            certificate = x509.load_pem_x509_certificate(self.certificate(_SERVER).read_bytes())
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound):
            return []
        return [str(name.value) for name in found]

    def sign_server(self, names: Sequence[str], days: int) -> None:
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        self._sign_leaf(
            _SERVER,
            names[0],
            days,
            ExtendedKeyUsageOID.SERVER_AUTH,
            x509.SubjectAlternativeName([_alternative_name(name) for name in names]),
        )

    def sign_client(self, name: str, days: int) -> None:
        from cryptography.x509.oid import ExtendedKeyUsageOID

        self._sign_leaf(name, name, days, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign_leaf(
        self,
        file: str,
        name: str,
        days: int,
        purpose: x509.ObjectIdentifier,
        *extensions: x509.ExtensionType,
    ) -> None:
        from cryptography import x509

        key = _new_key()
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(_subject(name[:64]), self._name, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer, critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        self._save(file, key, _sign(builder, self._key))

    def _save(self, name: str, key: EllipticCurvePrivateKey, certificate: bytes) -> None:
        from cryptography.hazmat.primitives import serialization

        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for path, content, mode in (
            (self.key(name), pem, 0o600),
            (self.certificate(name), certificate, 0o644),  # everybody may read a certificate
        ):
            with replacement(path, mode) as new:
                new.write_bytes(content)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # because the clocks of clients may be behind
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _parsed_hosts(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    try:
        return tuple(map(_host_name, given))
    except InvalidArgument as error:
        raise click.BadParameter(error.message) from None


def _parsed_clients(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    for name in given:
        if _CLIENT.fullmatch(name) is None or name in (_AUTHORITY, _SERVER):
            raise click.BadParameter(
                f"'{name}' cannot be a client's name, because the client's files are named after it: use"
                " at most 64 letters, digits, '_', '-', '.', '@' and '+', the first a letter, a digit or '_',"
                f" and not '{_AUTHORITY}' or '{_SERVER}'"
            )
    return given


_CREATE_EPILOG = """\b
Examples:
  backline certs create
  backline certs create --host models.example.org --host 10.0.0.7 --out certs
  backline certs create --client app --client scraper"""


@click.command("create", epilog=_CREATE_EPILOG)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    callback=_parsed_hosts,
    metavar="NAME",
    help="Another name or address of the server; repeatable. localhost and this machine's names are always"
    " included.",
)
@click.option(
    "--client",
    "clients",
    multiple=True,
    callback=_parsed_clients,
    metavar="NAME",
    help="Also create a client certificate with this name; repeatable.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("certs"),
    show_default=True,
    help="The folder for the files.",
)
@click.option(
    "--days",
    type=WholeNumber(1, _AUTHORITY_DAYS),
    default=365,
    show_default=True,
    help="The number of days for which the certificates are valid.",
)
def create(hosts: tuple[str, ...], clients: tuple[str, ...], folder: Path, days: int) -> None:
    """Create a certificate authority (CA) and a server certificate for development.

    A CA that is already in the folder signs the new certificates, so clients continue to trust the server.
    An existing server certificate is renewed, and keeps its names, unless --client is given without --host.
    """
    files = _Folder(folder)
    names = files.server_names()
    if not names or hosts or not clients:
        names = list(dict.fromkeys((*_LOOPBACK, *_machine_names(), *names, *hosts)))
        files.sign_server(names, days)
        click.echo(f"{files.certificate(_SERVER)}: the server's certificate, for {', '.join(names)}")
    for name in clients:
        files.sign_client(name, days)
        click.echo(f"{files.certificate(name)}: the certificate of the client '{name}'")
    what = "the certificate of the new CA" if files.is_new else "the certificate of the existing CA"
    click.echo(
        f"{files.certificate(_AUTHORITY)}: {what}, which clients must trust;"
        f" keep {files.key(_AUTHORITY).name} secret"
    )
    _print_commands(files, clients[0] if clients else None)


def _print_commands(files: _Folder, client: str | None) -> None:
    authority = files.certificate(_AUTHORITY)
    serve: list[Any] = ["--ssl-certificate", files.certificate(_SERVER), "--ssl-key", files.key(_SERVER)]
    connect: list[Any] = ["--url", "https://localhost:8000", "--ca", authority]
    python = f'ca="{authority}"'
    if client is not None:
        certificate, key = files.certificate(client), files.key(client)
        serve += ["--ssl-client-ca", authority]
        connect += ["--certificate", certificate, "--key", key]
        python += f', certificate="{certificate}", key="{key}"'
    click.echo("\nServe:\n")
    click.echo(f"  backline serve models/ {shlex.join(map(str, serve))}")
    click.echo("\nConnect:\n")
    click.echo(f"  backline models list {shlex.join(map(str, connect))}")
    click.echo(f'  backline.connect("https://localhost:8000", {python})')
    if client is not None:
        click.echo("\nTo limit what the client may do, add this to the file that you pass with --auth:\n")
        for line in (
            "[[certificates]]",
            f'name = "{client}"',
            f'subject = "CN={client}"',
            'scopes = ["infer", "read"]',
        ):
            click.echo(f"  {line}")


@click.group("certs", cls=CommandGroup)
def command() -> None:
    """Create certificates for a server and its clients, for development."""


command.add_command(create)
