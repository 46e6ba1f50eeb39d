"""What an identity may do, tested with plain values."""

from __future__ import annotations

import time

import pytest

from backline.access.access import UNCONFIGURED, Access, Policy
from backline.access.identity import ANY_MODEL, Grant, Identity, anonymous
from backline.access.keys import MAX_LENGTH, generate_key, hash_key
from backline.access.scope import Scope
from backline_client.values.errors import Forbidden, Unauthenticated

#: Fixed, as workers of one test run must collect the same tests.
KEY = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I"
OTHER = "bk_6nLeMIjxcEfRsy1hlbrDtxvFbRxIqXvqdX7mHtL2Gug"


def identity(*scopes: Scope, models: tuple[str, ...] = ("*",), expires: float | None = None) -> Identity:
    return Identity("app", (Grant(frozenset(scopes), models),), expires)


def access(**keys: Identity) -> Access:
    return Access(Policy(anonymous(()), {hash_key(key): found for key, found in keys.items()}))


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        (("*",), "add1", True),
        (("*",), None, True),
        (("add*",), "add1", True),
        (("add*",), "sub1", False),
        (("add*", "sub1"), "sub1", True),
        (("add*",), None, False),
        (("add*",), ANY_MODEL, True),
        (("add1",), "ADD1", False),
        (("add1",), "add1 ", False),
    ],
)
def test_a_grant_covers_the_models_that_match_its_patterns(
    models: tuple[str, ...], model: str | None, allowed: bool
) -> None:
    found = identity(Scope.INFER, models=models)
    assert found.may(Scope.INFER, model) is allowed
    assert found.may(Scope.INFER, model) is allowed  # remembered
    assert not found.may(Scope.READ, model)


def test_scopes_of_one_grant_do_not_extend_to_the_models_of_another() -> None:
    found = Identity(
        "app", (Grant(frozenset({Scope.INFER}), ("a",)), Grant(frozenset({Scope.MANAGE}), ("b",)))
    )
    assert found.may(Scope.INFER, "a")
    assert found.may(Scope.MANAGE, "b")
    assert not found.may(Scope.MANAGE, "a")
    assert not found.may(Scope.INFER, "b")


def test_probes_need_no_key() -> None:
    anonymous(()).require(Scope.HEALTH, None)


def test_a_key_without_the_scope_is_forbidden_and_a_missing_key_unauthenticated() -> None:
    with pytest.raises(Forbidden, match="the key 'app' does not have the scope 'manage' for model 'm'"):
        identity(Scope.INFER).require(Scope.MANAGE, "m")
    with pytest.raises(Unauthenticated, match="this request needs a key with the scope 'manage'"):
        anonymous((Scope.INFER,)).require(Scope.MANAGE, "m")


def test_an_expired_key_is_refused() -> None:
    identity(Scope.INFER, expires=time.time() + 60).require(Scope.INFER, "m")
    with pytest.raises(Unauthenticated, match="'app' has expired"):
        identity(Scope.INFER, expires=time.time()).require(Scope.INFER, "m")


def test_an_expired_key_is_refused_even_where_no_key_is_needed() -> None:
    with pytest.raises(Unauthenticated, match="'app' has expired"):
        identity(Scope.INFER, expires=time.time()).require(Scope.HEALTH, None)


def test_without_configuration_nothing_can_be_changed() -> None:
    caller = Access(UNCONFIGURED).identify({})
    for scope in (Scope.INFER, Scope.READ, Scope.METRICS):
        caller.require(scope, None)
    for scope in (Scope.MANAGE, Scope.ADMIN):
        with pytest.raises(Unauthenticated, match="--insecure-open"):
            caller.require(scope, None)


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  ", b""])
def test_a_key_is_found_in_either_field(scheme: bytes) -> None:
    found = access(**{KEY: identity(Scope.INFER)})
    assert found.identify({b"authorization": scheme + KEY.encode()}).name == "app"
    assert found.identify({b"x-api-key": KEY.encode()}).name == "app"
    assert found.identify({}).anonymous


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer x",
        b"Basic " + KEY.encode(),
        KEY.encode()[:-1],
        KEY.encode() + b"x",
        KEY.lower().encode(),
        b"Bearer " + KEY.encode() + b", " + KEY.encode(),
        b"\xff" * 40,
        b"k" * (MAX_LENGTH + 1),
        hash_key(KEY).encode(),
    ],
)
@pytest.mark.parametrize("field", [b"authorization", b"x-api-key"])
def test_a_wrong_key_is_refused_rather_than_ignored(field: bytes, value: bytes) -> None:
    found = Access(Policy(anonymous(Scope), {hash_key(KEY): identity(Scope.INFER)}))
    with pytest.raises(Unauthenticated):
        found.identify({field: value})


def test_a_new_policy_applies_to_identities_in_use() -> None:
    found = access(**{KEY: identity(Scope.INFER), OTHER: identity(Scope.INFER)})
    kept, gone = found.identify({b"x-api-key": KEY.encode()}), found.identify({b"x-api-key": OTHER.encode()})
    stranger = found.identify({})
    found.use(Policy(anonymous((Scope.READ,)), {hash_key(KEY): identity(Scope.READ)}))

    kept.require(Scope.READ, None)
    stranger.require(Scope.READ, None)
    assert not kept.may(Scope.INFER, None)
    assert found.identify({b"x-api-key": KEY.encode()}) is kept
    with pytest.raises(Unauthenticated, match="revoked"):
        gone.require(Scope.INFER, None)
    with pytest.raises(Unauthenticated):
        found.identify({b"x-api-key": OTHER.encode()})


def test_generated_keys_are_long_and_differ() -> None:
    keys = {generate_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 43 and key.startswith("bk_") for key in keys)
