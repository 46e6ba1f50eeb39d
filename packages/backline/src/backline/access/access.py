"""Identifies callers by their credentials and checks what each caller may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from msgspec import Struct, field, structs

from backline.access.identity import Identity, anonymous
from backline.access.keys import MAX_LENGTH, hash_key
from backline.access.quota import Meter, Quota
from backline.access.rules import CertificateRule, Claims, TokenRule, describe
from backline.access.scope import Scope
from backline.wire.application import REMOTE, Certificate
from backline_client.values.errors import Unauthenticated
from backline_client.values.memo import Memo

if TYPE_CHECKING:
    from backline.access.token_verifier import TokenVerifier

AUTHORIZATION = b"authorization"
API_KEY = b"x-api-key"
#: The prefix of the WebSocket subprotocol that carries a key or token. A web page can send no other header
#: field of its choice with a handshake.
_SUBPROTOCOL = b"backline.bearer."
_SUBPROTOCOLS = b"sec-websocket-protocol"
#: The maximum number of remembered credentials. A remembered credential is not hashed or verified again.
_MAX_REMEMBERED = 4096
#: The maximum size in bytes of a field with a credential that is remembered: enough for every token. Holders
#: of a key could otherwise fill the memory with other spellings, because a field may have many spaces.
_MAX_REMEMBERED_SIZE = 8 * 1024 + 64


class Policy(Struct, frozen=True):
    """The identities that a server knows.

    `keys` maps the hash of each key to its identity, and `tokens` maps each issuer to its rule. The first
    rule in `certificates` that applies to a client's certificate determines the client's identity.
    """

    anonymous: Identity
    keys: Mapping[str, Identity] = field(default_factory=dict)
    certificates: Sequence[CertificateRule] = ()
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)


class Certified(Protocol):
    """An object that knows the client's certificate: a request, a call or a connection."""

    @property
    def certificate(self) -> Certificate | None: ...


#: Appended to error texts if no identity is configured and other machines can reach the server's address.
_CLOSED = (
    ", because the server listens on a network and has no keys; define keys with --auth FILE (see"
    " 'backline keys create --help'), or allow everyone to do everything with --insecure-open"
)
UNCONFIGURED = Policy(anonymous((Scope.INFER, Scope.READ, Scope.METRICS), cure=_CLOSED))


def _of_websocket(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Returns the key or token among the subprotocols that a WebSocket handshake offers, or None."""
    for one in headers[_SUBPROTOCOLS].split(b","):
        if one.strip().startswith(_SUBPROTOCOL):
            return b"Bearer " + one.strip().removeprefix(_SUBPROTOCOL)
    return None


class Access:
    """Finds the identity of each request from its header fields or metadata. Used only on the event loop.

    A key or token in the header determines the identity; if there is none, the client's certificate does.

    Invariant: a changed policy also applies to the identities of streams that are already open. Each identity
    either gets its new permissions or is revoked.
    """

    def __init__(self, policy: Policy) -> None:
        """Raises InvalidArgument if a file with the keys of a token issuer is not valid."""
        self._known: Memo[bytes, Identity] = Memo(_MAX_REMEMBERED)
        self._holders: Memo[Certificate, Identity] = Memo(_MAX_REMEMBERED)
        self._memos: list[Memo[Any, Any]] = []
        #: Identities of certificates and tokens that are still in use, each with the certificate or claims of
        #: its holder.
        self._issued: WeakKeyDictionary[Identity, Certificate | Claims] = WeakKeyDictionary()
        #: The meters of the holders of certificates and tokens, by rule and holder. All certificates to which
        #: one rule applies share the same quotas, and so do all tokens of one subject.
        self._meters: WeakValueDictionary[tuple[str, str], Meter] = WeakValueDictionary()
        #: Security: keeps each meter as long as past requests count against its quotas (see `Meter.rests`).
        #: Identities may be forgotten sooner, because a holder can fill the memo with other spellings of its
        #: token; with a new meter, the holder would get its full quotas again.
        self._in_use: set[Meter] = set()
        self._look_at = _MAX_REMEMBERED
        self._verifier: TokenVerifier | None = None
        self._use_tokens(policy)
        self._policy = policy
        #: The identity of requests without a key or token; None if a client's certificate determines the
        #: identity.
        self._default = None if policy.certificates else policy.anonymous

    def memo(self) -> Memo[Any, Any]:
        """Creates a memo for decisions about identities that never expire. Whenever a policy changes or an
        identity is revoked, the memo is cleared, so its entries need no further check.
        """
        memo: Memo[Any, Any] = Memo(_MAX_REMEMBERED)
        self._memos.append(memo)
        return memo

    @property
    def policy(self) -> Policy:
        return self._policy

    def close(self) -> None:
        """Stops updating the keys of token issuers."""
        if self._verifier is not None:
            self._verifier.close()

    def use(self, policy: Policy) -> None:
        """Replaces the policy.

        Raises InvalidArgument if a file with the keys of a token issuer is not valid; then nothing changes.
        """
        self._use_tokens(policy)
        before = self._policy
        before.anonymous.become(policy.anonymous)
        keys = dict(policy.keys)
        for hashed, identity in before.keys.items():
            if hashed in keys:
                identity.become(keys[hashed])
                keys[hashed] = identity
            else:
                identity.revoke()
        self._policy = structs.replace(policy, anonymous=before.anonymous, keys=keys)
        self._default = None if policy.certificates else before.anonymous
        self._use_quotas(policy)
        self._reissue()

    def _use_quotas(self, policy: Policy) -> None:
        """Switches the meters of certificates and tokens to the new quotas.

        As with keys, past use counts against a quota that has changed, and is forgotten with a quota that has
        been removed. That must not depend on which identities happen to be in memory.
        """
        rules: list[CertificateRule | TokenRule] = [*policy.certificates, *policy.tokens.values()]
        quotas: dict[str, Sequence[Quota]] = {}
        for rule in rules:
            quotas.setdefault(rule.identifier, rule.quotas)
        for (identifier, holder), meter in list(self._meters.items()):
            changed = quotas.get(identifier)
            if changed:
                meter.change(changed, meter.whose, monotonic())
            else:
                del self._meters[identifier, holder]
                self._in_use.discard(meter)

    def _use_tokens(self, policy: Policy) -> None:
        if self._verifier is None and policy.tokens:
            from backline.access.token_verifier import TokenVerifier

            self._verifier = TokenVerifier(self._reissue)
        if self._verifier is not None:
            self._verifier.use(policy.tokens)

    def _reissue(self) -> None:
        """Updates the identities of certificates and tokens when rules have changed or a key is withdrawn."""
        for memo in self._memos:
            memo.clear()
        self._known.clear()
        self._holders.clear()
        for identity, credential in list(self._issued.items()):
            now = self._issue(credential)
            if now is None:
                identity.revoke()
            else:
                identity.meter = None  # other rules may now apply to identities that share this meter
                identity.become(now)
                identity.meter = now.meter

    def identify(self, headers: Mapping[bytes, bytes], caller: Certified = REMOTE) -> Identity:
        """Returns the identity of the caller that sent these header fields.

        Raises Unauthenticated if the key or token is not valid: a request with a wrong key is never treated
        like a request without a key. Raises Unavailable while the keys that verify a token are being fetched.
        """
        given = headers.get(AUTHORIZATION)
        if given is None:
            given = headers.get(API_KEY)
            if given is None and _SUBPROTOCOLS in headers:
                given = _of_websocket(headers)
            if given is None:
                default = self._default
                return self._holder(caller.certificate) if default is None else default
        known = self._known.get(given)
        return self._identify(given) if known is None else known

    def _identify(self, given: bytes) -> Identity:
        scheme, separator, rest = given.strip().partition(b" ")
        if separator and scheme.lower() != b"bearer":
            # The error does not quote the scheme, which may in fact be a key that was sent without a scheme.
            raise Unauthenticated(
                "the authorization scheme is not supported; send 'Authorization: Bearer KEY'"
            )
        key = rest.strip() if separator else scheme
        identity = self._policy.keys.get(hash_key(key)) if len(key) <= MAX_LENGTH else None
        if identity is None and self._policy.tokens and self._verifier is not None and key.count(b".") == 2:
            claims = self._verifier.verify(key)
            identity = self._of_token(claims)
            if identity is not None:
                self._issued[identity] = claims
        if identity is None:
            raise Unauthenticated(
                "the key is unknown to this server, or it has been revoked; ask the server's operator for"
                " a valid key"
            )
        return identity if len(given) > _MAX_REMEMBERED_SIZE else self._known.keep(given, identity)

    def _holder(self, certificate: Certificate | None) -> Identity:
        """Returns the identity of a client with this certificate."""
        if certificate is None:
            return self._policy.anonymous
        known = self._holders.get(certificate)
        if known is not None:
            return known
        identity = self._of_certificate(certificate)
        self._issued[identity] = certificate
        return self._holders.keep(certificate, identity)

    def _of_certificate(self, certificate: Certificate) -> Identity:
        for rule in self._policy.certificates:
            identity = rule.identify(certificate)
            if identity is not None:
                return self._held(identity, rule.identifier, rule.identifier)
        cure = f"; no table [[certificates]] applies to the client's certificate ({describe(certificate)})"
        unknown = replace(self._policy.anonymous, cure=cure, quotas=())
        # All callers without a key share one quota, whatever certificate they have.
        unknown.meter = self._policy.anonymous.meter
        return unknown

    def _issue(self, credential: Certificate | Claims) -> Identity | None:
        """Returns the identity for a credential; None if the credential would no longer be accepted."""
        if isinstance(credential, Certificate):
            return self._of_certificate(credential) if self._policy.certificates else self._policy.anonymous
        return self._of_token(credential)

    def _of_token(self, claims: Claims) -> Identity | None:
        """Returns the identity of a token's holder; None if the token would no longer be accepted."""
        identity = None if self._verifier is None else self._verifier.identify(claims)
        if identity is None:
            return None
        rule = self._policy.tokens[claims.issuer].identifier
        return self._held(identity, rule, f"{rule} {claims.subject!r}")

    def _held(self, identity: Identity, rule: str, holder: str) -> Identity:
        """Assigns an identity to a holder. All identities of a holder under one rule share the same quotas.

        `rule` is the identifier of the rule that issued the identity. `holder` contains a space, so it
        differs from the name of any key.
        """
        identity.holder = holder
        if identity.meter is not None:
            known = self._meters.setdefault((rule, holder), identity.meter)
            if known is not identity.meter:
                known.change(identity.quotas, identity.meter.whose, monotonic())
                identity.meter = known
            self._in_use.add(known)
            if len(self._in_use) > self._look_at:
                now = monotonic()
                self._in_use = {meter for meter in self._in_use if not meter.rests(now)}
                self._look_at = max(_MAX_REMEMBERED, 2 * len(self._in_use))
        return identity
