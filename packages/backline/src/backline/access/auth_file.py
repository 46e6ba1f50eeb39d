"""Reads the file given with --auth, which lists callers and what each may do, and applies later changes to
the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backline.access.access import Access, Policy
from backline.access.identity import Grant, Identity, anonymous
from backline.access.keys import ENVIRONMENT_KEYS, MIN_LENGTH, hash_key
from backline.access.quota import Quota
from backline.access.rules import Algorithm, CertificateRule, TokenRule, parse_alternative_name, parse_subject
from backline.access.scope import Scope
from backline.engine.document_limits import check_toml
from backline.system.file_watch import FileWatch
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

_MAX_SIZE = 4 * 1024 * 1024

log = logging.getLogger("backline.access")

_Text = Annotated[str, Meta(min_length=1)]
_Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[\w.@+-]+$")]
_Models = Annotated[list[_Text], Meta(min_length=1)]


#: The numbers per second that a quota may allow, and the largest number of requests. Numbers outside this
#: range, or infinite ones, would overflow in the arithmetic of quotas.
LEAST_RATE = 1e-6
MOST_RATE = 1e12
MOST_REQUESTS = 10**12


@decodable
class QuotaEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table `quota`, such as [keys.quota], which limits all requests of a caller taken together.

    [anonymous] and the tables [[keys]], [[certificates]] and [[tokens]] may each have one.
    """

    requests_per_second: float | None = None
    burst: int | None = None
    max_in_flight: int | None = None
    bytes_per_second: float | None = None

    def quota(self, whose: str, models: Sequence[str] = ("*",)) -> Quota:
        """Returns the table as a Quota.

        Raises InvalidArgument for a number that is not allowed, a burst without a rate, or a table without
        limits.
        """
        for name, allowed, least, most in (
            ("requests_per_second", "a number", LEAST_RATE, MOST_RATE),
            ("burst", "a whole number", 1, MOST_REQUESTS),
            ("max_in_flight", "a whole number", 1, MOST_REQUESTS),
            ("bytes_per_second", "a number", LEAST_RATE, MOST_RATE),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidArgument(
                    f"--auth: the quota of {whose} has {name} = {str(value)[:20]}, expected {allowed} from"
                    f" {least:g} to {most:g}; for no limit, remove {name}"
                )
        if self.burst is not None and self.requests_per_second is None:
            raise InvalidArgument(
                f"--auth: the quota of {whose} has a burst but no requests_per_second; set both, or remove"
                " burst"
            )
        if (self.requests_per_second, self.max_in_flight, self.bytes_per_second) == (None, None, None):
            raise InvalidArgument(
                f"--auth: the quota of {whose} limits nothing; set requests_per_second, max_in_flight or"
                " bytes_per_second, or remove the table"
            )
        return Quota(
            self.requests_per_second, self.burst, self.max_in_flight, self.bytes_per_second, tuple(models)
        )


@decodable
class ModelQuotaEntry(QuotaEntry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table in a list `quotas`, such as [[keys.quotas]], which limits the requests to some models taken
    together.
    """

    models: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]


def _quotas(whose: str, quota: QuotaEntry | None, by_model: Sequence[ModelQuotaEntry]) -> tuple[Quota, ...]:
    """Returns the quotas of one caller.

    Raises InvalidArgument for an invalid quota, or two quotas for the same models.
    """
    found = [] if quota is None else [quota.quota(whose)]
    found += [entry.quota(whose, entry.models) for entry in by_model]
    if len({frozenset(one.models) for one in found}) < len(found):
        raise InvalidArgument(f"--auth: two quotas of {whose} are for the same models; merge them")
    return tuple(found)


class _Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of all tables of callers."""

    quota: QuotaEntry | None = None
    quotas: list[ModelQuotaEntry] = msgspec.field(default_factory=list)


class _NamedCaller(_Caller, frozen=True, kw_only=True):
    name: _Name
    scopes: list[Scope]
    models: _Models = msgspec.field(default_factory=lambda: ["*"])
    expires: datetime | None = None


@decodable
class KeyEntry(_NamedCaller, frozen=True, kw_only=True):
    """A [[keys]] table. `sha256` is the hash of the key."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


@decodable
class CertificateEntry(_NamedCaller, frozen=True):
    """A [[certificates]] table: the permissions of clients whose certificate matches `subject` and `san`.

    The table needs at least one of these two fields.
    """

    subject: _Text | None = None
    san: _Text | None = None


@decodable
class TokenEntry(_Caller, frozen=True, kw_only=True):
    """A [[tokens]] table: an issuer whose tokens are accepted. See TokenRule for the fields.

    Without `jwks`, the issuer's metadata is fetched to find its keys (OpenID Connect Discovery).
    """

    issuer: _Text
    audience: _Text | Annotated[list[_Text], Meta(min_length=1)]
    scopes: dict[str, list[Scope]]
    jwks: _Text | None = None
    claim: _Text = "scope"
    algorithms: Annotated[list[Algorithm], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["RS256", "ES256"]
    )
    models: _Models = msgspec.field(default_factory=lambda: ["*"])
    leeway: Annotated[float, Meta(ge=0, le=300)] = 30.0


@decodable
class AnonymousEntry(_Caller, frozen=True):
    """The [anonymous] table: what requests without credentials may do."""

    scopes: list[Scope] = msgspec.field(default_factory=list)


@decodable
class AuthDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of an auth file."""

    anonymous: AnonymousEntry = msgspec.field(default_factory=AnonymousEntry)
    keys: list[KeyEntry] = msgspec.field(default_factory=list)
    certificates: list[CertificateEntry] = msgspec.field(default_factory=list)
    tokens: list[TokenEntry] = msgspec.field(default_factory=list)


def read_auth_file(path: Path) -> AuthDocument:
    """Reads an auth file. Raises InvalidArgument if the file cannot be read or is not valid."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise InvalidArgument(f"--auth: '{path}' cannot be read: {error.strerror}") from None
    if len(content) > _MAX_SIZE:
        raise InvalidArgument(
            f"--auth: '{path}' is larger than {_MAX_SIZE >> 20} MiB, the maximum size of an auth file"
        )
    try:
        text = content.decode()
        check_toml(text, str(path))
        document = msgspec.convert(_with_times(tomllib.loads(text)), AuthDocument)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidArgument(f"--auth: '{path}' is not valid: {error}{_near_field(str(error))}") from None
    try:
        _check_quotas(document)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"--auth: '{path}' is not valid: {error.message.removeprefix('--auth: ')}"
        ) from None
    return document


def _check_quotas(document: AuthDocument) -> None:
    """Raises InvalidArgument, naming the caller, for an invalid quota."""
    for key in document.keys:
        _quotas(f"key '{key.name}'", key.quota, key.quotas)
    for certificate in document.certificates:
        _quotas(f"certificate '{certificate.name}'", certificate.quota, certificate.quotas)
    for token in document.tokens:
        _quotas(f"the issuer '{token.issuer}'", token.quota, token.quotas)
    _quotas("[anonymous]", document.anonymous.quota, document.anonymous.quotas)


def _near_field(error: str) -> str:
    """Returns a hint if an error is about an unknown field whose name is similar to that of a known field."""
    found = re.search("unknown field `([^`]*)`", error)
    known = (
        field
        for table in (AuthDocument, KeyEntry, CertificateEntry, TokenEntry, AnonymousEntry, ModelQuotaEntry)
        for field in table.__struct_fields__
    )
    near = nearest(found[1], known) if found else []
    return f". Did you mean '{near[0]}'?" if near else ""


def _with_times(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document, with the start of the day in UTC in place of each expiry date without a time."""
    for tables in (document.get("keys"), document.get("certificates")):
        for entry in tables if isinstance(tables, list) else ():
            if isinstance(entry, dict) and type(entry.get("expires")) is date:
                entry["expires"] = datetime.combine(entry["expires"], time(), UTC)
    return document


def make_policy(
    document: AuthDocument, environment: Mapping[str, str] = os.environ, folder: Path = Path()
) -> Policy:
    """Returns the policy defined by a file and the keys in environment variables.

    Relative paths in the file are relative to `folder`.

    Raises InvalidArgument for two keys with the same name or hash, a key that is too short, or an invalid
    quota, certificate or issuer.
    """
    identities: dict[str, Identity] = {}
    names: set[str] = set()
    for entry in document.keys:
        if entry.name in names:
            raise InvalidArgument(f"--auth: two keys are named '{entry.name}'; rename or revoke one")
        if entry.sha256 in identities:
            raise InvalidArgument(f"--auth: '{entry.name}' has the same hash as another key; rotate one")
        names.add(entry.name)
        grant = Grant(frozenset(entry.scopes), tuple(entry.models))
        quotas = _quotas(f"key '{entry.name}'", entry.quota, entry.quotas)
        identities[entry.sha256] = Identity(entry.name, (grant,), _timestamp(entry.expires), quotas=quotas)
    for variable, scopes in ENVIRONMENT_KEYS.items():
        key = environment.get(variable)
        if key is None:
            continue
        if len(key) < MIN_LENGTH:
            raise InvalidArgument(
                f"{variable} has {len(key)} characters, but a key needs at least {MIN_LENGTH};"
                " 'backline keys generate' prints one that is long enough"
            )
        identities[hash_key(key)] = Identity(variable, (Grant(scopes),))
    unknown = document.anonymous
    quotas = _quotas("[anonymous]", unknown.quota, unknown.quotas)
    return Policy(
        anonymous(unknown.scopes, quotas=quotas),
        identities,
        tuple(map(_certificate_rule, document.certificates)),
        _token_rules(document.tokens, folder),
    )


def _certificate_rule(entry: CertificateEntry) -> CertificateRule:
    if entry.subject is None and entry.san is None:
        raise InvalidArgument(
            f"--auth: the certificate '{entry.name}' needs a subject, such as 'CN=app', or a san, such as"
            " 'DNS:app.example.org'"
        )
    try:
        subject = frozenset() if entry.subject is None else parse_subject(entry.subject)
        names = frozenset() if entry.san is None else frozenset((parse_alternative_name(entry.san),))
    except InvalidArgument as error:
        raise InvalidArgument(f"--auth: the certificate '{entry.name}': {error.message}") from None
    grant = Grant(frozenset(entry.scopes), tuple(entry.models))
    quotas = _quotas(f"certificate '{entry.name}'", entry.quota, entry.quotas)
    return CertificateRule(entry.name, subject, names, grant, _timestamp(entry.expires), quotas)


def _token_rules(entries: Sequence[TokenEntry], folder: Path) -> dict[str, TokenRule]:
    """Returns the rules for tokens, by issuer."""
    if not entries:
        return {}
    try:
        from backline.access.key_ring import check_location, metadata_url
    except ImportError as error:
        raise InvalidArgument(
            f"--auth: [[tokens]] needs PyJWT and cryptography: pip install 'backline[auth]' ({error})"
        ) from None
    rules: dict[str, TokenRule] = {}
    for entry in entries:
        if entry.issuer in rules:
            raise InvalidArgument(
                f"--auth: two [[tokens]] tables have the issuer '{entry.issuer}'; merge them"
            )
        try:
            if entry.jwks is None:
                location = metadata_url(entry.issuer)
            else:
                location = entry.jwks if "://" in entry.jwks else str(folder / entry.jwks)
            check_location(location)
        except InvalidArgument as error:
            raise InvalidArgument(f"--auth: the issuer '{entry.issuer}': {error.message}") from None
        rules[entry.issuer] = TokenRule(
            entry.issuer,
            frozenset((entry.audience,) if isinstance(entry.audience, str) else entry.audience),
            location,
            frozenset(entry.algorithms),
            entry.claim,
            {value: frozenset(scopes) for value, scopes in entry.scopes.items()},
            tuple(entry.models),
            entry.leeway,
            _quotas(f"the issuer '{entry.issuer}'", entry.quota, entry.quotas),
        )
    return rules


def _timestamp(moment: datetime | None) -> float | None:
    """Converts a time to seconds since 1970. A time without a time zone is taken as UTC."""
    if moment is None:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


class AuthFileWatch:
    """Applies changes to the auth file while the server runs. If the changed file is not valid, logs an error
    and keeps the previous policy.
    """

    def __init__(
        self,
        path: Path,
        access: Access,
        loop: asyncio.AbstractEventLoop,
        on_reload: Callable[[str], None] = lambda error: None,
    ) -> None:
        """`on_reload` is called after each reload with an error text, which is empty after a success."""
        self._on_reload = on_reload
        self._path = path
        self._access = access
        self._loop = loop
        #: The latest read of the file. Results of earlier reads are ignored.
        self._reading: asyncio.Future[Policy | InvalidArgument] | None = None
        self._watch = FileWatch([path], self._read, loop)

    def close(self) -> None:
        self._watch.close()
        self._reading = None

    def reload(self) -> None:
        """Reads the file again, whether or not it has changed."""
        self._watch.mark_read()
        self._read()

    def _read(self) -> None:
        # A file of thousands of keys takes a second to read.
        self._reading = self._watch.run(self._read_on_thread)
        self._reading.add_done_callback(self._apply)

    def _read_on_thread(self) -> Policy | InvalidArgument:
        try:
            return make_policy(read_auth_file(self._path), folder=self._path.parent)
        except InvalidArgument as error:
            return error

    def _apply(self, reading: asyncio.Future[Policy | InvalidArgument]) -> None:
        if reading.cancelled() or reading is not self._reading:
            return
        policy = reading.result()
        try:
            if isinstance(policy, InvalidArgument):
                raise policy
            self._access.use(policy)
        except InvalidArgument as error:
            log.error("%s; the previous keys stay in force", error.message)
            self._on_reload(error.message)
            return
        log.info(
            "read %d keys, %d certificates and %d token issuers from '%s'",
            len(policy.keys),
            len(policy.certificates),
            len(policy.tokens),
            self._path,
        )
        self._on_reload("")
