"""Callers that send requests, and the permissions of each. This module does no I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from msgspec import Struct

from backline.access.quota import Meter, Quota
from backline.access.scope import EVERYBODY, Scope
from backline.engine.ticket import Ticket
from backline_client.values.errors import Forbidden, Unauthenticated
from backline_client.values.memo import Memo
from backline_client.values.names import LONGEST_NAME

#: A placeholder for a model name that has not been read yet. It is allowed if the caller may use any model.
ANY_MODEL = ""
#: The maximum number of decisions that an identity remembers; clients choose the model names.
_MAX_REMEMBERED = 1024


#: For each kind of credential, the advice to a holder whose credential has expired.
_RENEWAL = {
    "key": "ask the server's operator for a new one",
    "certificate": "connect again with a renewed one",
    "token": "ask its issuer for a new one",
}


class Grant(Struct, frozen=True):
    """A set of scopes, limited to models that match the given shell patterns; "*" means every model."""

    scopes: frozenset[Scope]
    models: tuple[str, ...] = ("*",)

    def covers(self, scope: Scope, model: str | None) -> bool:
        """Returns whether the grant allows `scope` on `model`; None means the server, or every model."""
        if scope not in self.scopes:
            return False
        if "*" in self.models or model == ANY_MODEL:
            return True
        return model is not None and any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Identity:
    """A caller, such as the holder of an API key. The name of callers without credentials is empty.

    Requests and calls refer to their identity, so setting `revoked` also stops open streams.
    """

    name: str
    grants: tuple[Grant, ...]
    #: When the identity expires, in seconds of time.time(); None if it never expires.
    expires: float | None = None
    #: Advice about a missing permission, appended to the error.
    cure: str = ""
    #: The kind of credential (a key, a client certificate or a token), for error texts.
    kind: str = "key"
    revoked: bool = False
    #: Distinguishes this caller from all others, as names are not unique: of two callers with the same name,
    #: one may have a key and the other a token, or their tokens may have different issuers.
    holder: str = field(default="", init=False, repr=False)
    quotas: tuple[Quota, ...] = ()
    #: Whether this identity may run every model.
    infers_all: bool = field(default=False, init=False, repr=False)
    #: Measures what this identity uses. None if the identity has no quotas.
    meter: Meter | None = field(default=None, init=False, repr=False)
    _allowed: Memo[tuple[Scope, str | None], bool] = field(
        default_factory=lambda: Memo(_MAX_REMEMBERED), init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.holder = self.name
        self._changed()

    def _changed(self) -> None:
        self._allowed.clear()
        self.infers_all = any(Scope.INFER in grant.scopes and "*" in grant.models for grant in self.grants)
        if not self.quotas:
            self.meter = None
            return
        whose = "callers without a key together" if self.anonymous else f"the {self.kind} '{self.name}'"
        if self.meter is None:
            self.meter = Meter(self.quotas, whose, time.monotonic())
        else:
            self.meter.change(self.quotas, whose, time.monotonic())

    @property
    def anonymous(self) -> bool:
        return not self.name

    @property
    def ambient(self) -> bool:
        """Whether any web page can make a browser send requests with this identity without knowing a secret.

        Browsers present a client certificate to the server no matter which page causes the request.
        """
        return not self.name or self.kind == "certificate"

    def become(self, other: Identity) -> None:
        """Copies the permissions of `other`, after a change of the configuration."""
        self.name, self.kind, self.grants = other.name, other.kind, other.grants
        self.expires, self.cure = other.expires, other.cure
        self.holder = other.holder
        self.quotas = other.quotas
        self._changed()

    def revoke(self) -> None:
        """Makes all further requests fail, including those on streams that are already open."""
        self.revoked = True

    @property
    def lasts(self) -> bool:
        """Whether the identity never expires, so it keeps its permissions until the configuration changes."""
        return self.expires is None and not self.revoked

    def follow(self, ticket: Ticket) -> None:
        """Records this identity in a ticket, and counts the ticket as in flight until it ends.

        Must be called before the ticket is submitted. Raises QuotaExceeded if too many tickets are in flight.
        """
        ticket.identity = self.holder
        if self.meter is not None:
            self.meter.follow(ticket)

    def may(self, scope: Scope, model: str | None) -> bool:
        """Returns whether one of the grants allows `scope` on `model`; see Grant.covers."""
        known = self._allowed.get((scope, model))
        if known is None:
            known = any(grant.covers(scope, model) for grant in self.grants)
            # Security: clients choose the name, which in a gRPC message may have megabytes.
            if model is None or len(model) <= LONGEST_NAME:
                self._allowed.keep((scope, model), known)
        return known

    def require(self, scope: Scope, model: str | None) -> None:
        """Raises Unauthenticated if the identity is no longer valid, and Forbidden if the identity lacks the
        permission.

        For an anonymous caller that lacks the permission, the error is Unauthenticated, which asks for a key.
        Every valid identity has the scopes in EVERYBODY.
        """
        if self.revoked:
            raise Unauthenticated(
                f"the {self.kind} has been revoked; ask the server's operator for a new one"
            )
        if self.expires is not None and time.time() >= self.expires:
            raise Unauthenticated(f"the {self.kind} '{self.name}' has expired; {_RENEWAL[self.kind]}")
        if scope in EVERYBODY or self.may(scope, model):
            return
        if self.anonymous:
            raise Unauthenticated(f"this request needs a key with the scope '{scope}'{self.cure}")
        target = {None: "every model", ANY_MODEL: "any model"}.get(model, f"model '{model}'")
        raise Forbidden(
            f"the {self.kind} '{self.name}' does not have the scope '{scope}' for {target};"
            f" {_granted(self.grants)}"
        )


def anonymous(scopes: Iterable[Scope], cure: str = "", quotas: tuple[Quota, ...] = ()) -> Identity:
    """Returns the identity for requests without credentials. `cure` is appended to permission errors."""
    return Identity("", (Grant(frozenset(scopes)),), cure=cure, quotas=quotas)


def _granted(grants: Iterable[Grant]) -> str:
    """Returns what a caller may do, for error texts."""
    told = []
    for grant in grants:
        models = "" if "*" in grant.models else " for models " + ", ".join(grant.models)
        told.append(", ".join(sorted(grant.scopes)) + models)
    return "it has " + ("; ".join(told) or "none")
