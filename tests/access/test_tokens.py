"""Which tokens are accepted, with real keys and a real server of keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from backline.access import key_ring
from backline.access.access import Access
from backline.access.auth_file import make_policy, read_auth_file
from backline.access.identity import Identity
from backline.access.jwks import read_key_set
from backline.access.key_ring import FetchAbort, KeyRing, check_location, fetch_keys, metadata_url
from backline.access.keys import hash_key
from backline.access.scope import Scope
from backline.engine.ticket import Ticket
from backline.system import file_watch
from backline_client.values.errors import (
    Forbidden,
    InvalidArgument,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from backline_client.values.messages import InferRequest
from support.issuer import Issuer, served

KEY = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I"
TABLE = """
[[keys]]
name = "app"
sha256 = "{hash}"
scopes = ["read"]
[[tokens]]
issuer = "https://login.example.org/"
audience = ["backline", "models"]
jwks = "{jwks}"
algorithms = ["RS256", "ES256", "EdDSA"]
models = ["add*"]
scopes = {{ "models:infer" = ["infer"], "models:admin" = ["manage", "read"] }}
"""


class Site:
    """The access of a server that trusts an issuer, whose keys are in a file."""

    def __init__(self, folder: Path, issuer: Issuer, text: str = TABLE, *, jwks: str = "keys.json") -> None:
        self.folder, self.issuer = folder, issuer
        self.jwks = jwks
        (folder / "keys.json").write_bytes(issuer.key_set)
        self.access = Access(self.policy(text))

    def policy(self, text: str = TABLE) -> Any:
        path = self.folder / "auth.toml"
        path.write_text(text.format(hash=hash_key(KEY), jwks=self.jwks))
        return make_policy(read_auth_file(path), {}, self.folder)

    def identify(self, token: str | bytes) -> Identity:
        given = token if isinstance(token, bytes) else token.encode()
        return self.access.identify({b"authorization": b"Bearer " + given})

    def refusal(self, token: str | bytes) -> str:
        """Why a token is refused, twice, as refusals are not remembered as acceptance."""
        for _ in range(2):
            with pytest.raises(Unauthenticated) as refused:
                self.identify(token)
        return refused.value.message


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.fixture(params=["RS256", "ES256", "EdDSA"])
def issuer(request: pytest.FixtureRequest) -> Issuer:
    return Issuer(request.param)


@pytest.fixture(scope="module")
def rsa_issuer() -> Issuer:
    return Issuer()


def with_site(folder: Path, issuer: Issuer, check: Callable[[Site], None], text: str = TABLE) -> None:
    """Runs a check on the loop that an Access needs."""

    async def scenario() -> None:
        site = Site(folder, issuer, text)
        try:
            check(site)
        finally:
            site.access.close()

    run(scenario)


def test_a_token_allows_what_its_claim_is_mapped_to(tmp_path: Path, issuer: Issuer) -> None:
    def check(site: Site) -> None:
        token = issuer.token()
        found = site.identify(token)
        assert (found.name, found.kind) == ("alice", "token")
        found.require(Scope.INFER, "add1")
        with pytest.raises(Forbidden, match="the token 'alice' does not have the scope 'read'"):
            found.require(Scope.READ, "add1")
        with pytest.raises(Forbidden):
            found.require(Scope.INFER, "sub1")
        assert site.identify(token) is found
        assert site.access.identify({b"x-api-key": token.encode()}).name == "alice"

    with_site(tmp_path, issuer, check)


@pytest.mark.parametrize(
    ("claim", "value", "allowed"),
    [
        ("scope", {"scope": "models:infer models:admin"}, {Scope.INFER, Scope.READ, Scope.MANAGE}),
        ("scope", {"scope": "models:inferior openid"}, set()),
        ("scope", {"scope": None}, set()),
        ("roles", {"roles": ["models:infer", 7, None, {"a": 1}]}, {Scope.INFER}),
        ("roles", {"roles": {"models:infer": True}}, set()),
        ("realm_access.roles", {"realm_access": {"roles": ["models:infer"]}}, {Scope.INFER}),
        ("realm_access.roles", {"realm_access": "models:infer"}, set()),
        ("https://example.org/roles", {"https://example.org/roles": ["models:infer"]}, {Scope.INFER}),
    ],
)
def test_a_claim_is_a_list_or_words_and_may_be_nested(
    tmp_path: Path, rsa_issuer: Issuer, claim: str, value: dict[str, Any], allowed: set[Scope]
) -> None:
    def check(site: Site) -> None:
        found = site.identify(rsa_issuer.token(**{"scope": None, **value}))
        assert {scope for scope in Scope if found.may(scope, "add1")} == allowed

    with_site(tmp_path, rsa_issuer, check, TABLE + f'claim = "{claim}"\n')


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"iss": "https://evil.example/"},
            "from the issuer 'https://evil.example/', which this server does not",
        ),
        ({"iss": None}, "from the issuer 'None'"),
        ({"aud": "other"}, "is for the audience 'other', expected 'backline, models'"),
        ({"aud": ["other", "another"]}, "'another, other'"),
        ({"aud": None}, "is for the audience 'nobody'"),
        ({"aud": {"backline": 1}}, "is for the audience 'nobody'"),
        ({"exp": int(time.time()) - 31}, "has expired"),
        ({"exp": None}, "does not say when it expires"),
        ({"exp": "4000000000"}, "does not say when it expires"),
        ({"exp": True}, "does not say when it expires"),
        ({"exp": 10**400}, "does not say when it expires"),
        ({"nbf": 10**400}, "has an invalid start time"),
        ({"iss": 10**400}, "is from the issuer '?'"),
        ({"nbf": int(time.time()) + 3600}, "is not valid yet"),
        ({"nbf": "0"}, "invalid start time"),
        ({"sub": None}, "does not name its subject"),
        ({"sub": ""}, "does not name its subject"),
        ({"sub": "a\nb"}, "does not name its subject"),
        ({"scope": "x" * 9000}, "is longer than 8192 bytes"),
    ],
    # Without the time, as the workers of one test run must collect the same tests.
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[:40],
)
def test_a_token_with_a_wrong_claim_is_refused(
    tmp_path: Path, rsa_issuer: Issuer, changed: dict[str, Any], told: str
) -> None:
    def check(site: Site) -> None:
        token = unchecked(rsa_issuer, rsa_issuer.claims(**changed))
        assert told in site.refusal(token)

    with_site(tmp_path, rsa_issuer, check)


def unchecked(issuer: Issuer, claims: dict[str, Any], **header: Any) -> str:
    """A token with a valid signature, whatever its claims: PyJWT would refuse to make some of them."""
    return jwt.PyJWS().encode(
        json.dumps(claims).encode(), issuer.private, issuer.algorithm, {"kid": issuer.key, **header}
    )


@pytest.mark.parametrize("changed", [{"exp": -10}, {"nbf": 10}], ids=str)
def test_clocks_may_differ_a_little(tmp_path: Path, rsa_issuer: Issuer, changed: dict[str, int]) -> None:
    def check(site: Site) -> None:
        moved = {name: int(time.time()) + seconds for name, seconds in changed.items()}
        site.identify(rsa_issuer.token(**moved)).require(Scope.INFER, "add1")

    with_site(tmp_path, rsa_issuer, check)


def test_a_remembered_token_expires(
    tmp_path: Path, rsa_issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(site: Site) -> None:
        token = rsa_issuer.token(exp=int(time.time()) + 60)
        site.identify(token).require(Scope.INFER, "add1")
        later = time.time() + 91
        monkeypatch.setattr(time, "time", lambda: later)
        with pytest.raises(Unauthenticated, match="the token 'alice' has expired; ask its issuer"):
            site.identify(token).require(Scope.INFER, "add1")

    with_site(tmp_path, rsa_issuer, check)


def test_a_symmetric_signature_with_the_public_key_is_refused(tmp_path: Path, rsa_issuer: Issuer) -> None:
    public = rsa_issuer.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for algorithm in ("HS256", "HS512"):
        signed = forged(rsa_issuer, {"alg": algorithm, "kid": "first"})
        digest = jwt.get_algorithm_by_name(algorithm)
        token = signed + b"." + encode(digest.sign(signed, public))

        def check(site: Site, token: bytes = token, algorithm: str = algorithm) -> None:
            assert f"signed with the algorithm '{algorithm}', which is not allowed" in site.refusal(token)

        with_site(tmp_path, rsa_issuer, check)


def encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forged(issuer: Issuer, header: dict[str, Any], **changed: Any) -> bytes:
    """Header and claims without a signature."""
    return encode(json.dumps(header).encode()) + b"." + encode(json.dumps(issuer.claims(**changed)).encode())


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 7, ["RS256"]])
@pytest.mark.parametrize("signature", [b"", b"AAAA"])
def test_an_unsigned_token_is_refused(
    tmp_path: Path, rsa_issuer: Issuer, algorithm: Any, signature: bytes
) -> None:
    def check(site: Site) -> None:
        token = forged(rsa_issuer, {"alg": algorithm, "kid": "first"}) + b"." + signature
        assert "which is not allowed" in site.refusal(token)

    with_site(tmp_path, rsa_issuer, check)


def test_a_token_with_another_signature_is_refused(tmp_path: Path, issuer: Issuer) -> None:
    def check(site: Site) -> None:
        head, body, signature = issuer.token().encode().split(b".")
        other = Issuer(issuer.algorithm)
        for token in (
            head + b"." + encode(json.dumps(issuer.claims(scope="models:admin")).encode()) + b"." + signature,
            head + b"." + body + b".",
            head + b"." + body + b"." + encode(bytes(64)),
            other.token(),  # signed by another key of the same name
        ):
            assert "was not signed with a key of its issuer" in site.refusal(token)

    with_site(tmp_path, issuer, check)


def test_a_key_verifies_only_its_own_algorithm(tmp_path: Path) -> None:
    issuer = Issuer("ES256")

    def check(site: Site) -> None:
        other = Issuer("RS256")
        assert "signed with the key 'first', which its issuer" in site.refusal(other.token())

    with_site(tmp_path, issuer, check)


def test_header_fields_that_must_be_understood_are_refused(tmp_path: Path, rsa_issuer: Issuer) -> None:
    def check(site: Site) -> None:
        for fields in ({"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}):
            token = forged(rsa_issuer, {"alg": "RS256", "kid": "first", **fields}) + b".AAAA"
            told = site.refusal(token)
            assert "crit" in told or "b64" in told

    with_site(tmp_path, rsa_issuer, check)


@pytest.mark.parametrize("field", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_in_the_token_itself_is_not_used(tmp_path: Path, rsa_issuer: Issuer, field: str) -> None:
    attacker = Issuer(key="attacker")
    values = {"jwk": attacker.published[0], "x5c": ["AAAA"]}

    def check(site: Site) -> None:
        token = attacker.token(headers={field: values.get(field, "https://evil.example/keys")})
        assert "'attacker', which its issuer" in site.refusal(token)

    with_site(tmp_path, rsa_issuer, check)


@pytest.mark.parametrize(
    "token",
    ["..", "a.b.c", "e30.e30.", "e30=.e30.AA", "bnVsbA.e30.AA", "W10.W10.AA", "e30.{}.AA", "e3+0.e30.AA"],
)
def test_a_malformed_token_is_refused(tmp_path: Path, rsa_issuer: Issuer, token: str) -> None:
    with_site(tmp_path, rsa_issuer, lambda site: site.refusal(token) and None)


def test_any_bytes_are_refused_without_another_error(tmp_path: Path, rsa_issuer: Issuer) -> None:
    parts = st.one_of(
        st.binary(max_size=30),
        st.binary(max_size=40).map(encode),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["alg", "kid", "iss", "aud", "exp", "nbf", "sub", "crit"]),
                    st.sampled_from(["RS256", "first", Issuer.name, "backline"]) | inner,
                )
            ),
            max_leaves=8,
        ).map(lambda value: encode(json.dumps(value).encode())),
    )

    def check(site: Site) -> None:
        @given(st.lists(parts, min_size=3, max_size=3).map(b".".join))
        def attempt(token: bytes) -> None:
            with pytest.raises(Unauthenticated):
                site.identify(token)

        attempt()

    with_site(tmp_path, rsa_issuer, check)


def test_keys_work_next_to_tokens(tmp_path: Path, rsa_issuer: Issuer) -> None:
    with_site(tmp_path, rsa_issuer, lambda site: site.identify(KEY).require(Scope.READ, "add1"))


def test_a_changed_file_also_changes_identities_in_use(tmp_path: Path, rsa_issuer: Issuer) -> None:
    def check(site: Site) -> None:
        used = site.identify(rsa_issuer.token())
        site.access.use(site.policy(TABLE.replace('["infer"]', '["read"]')))
        used.require(Scope.READ, "add1")
        assert not used.may(Scope.INFER, "add1")
        for text in (
            TABLE.replace('"backline", "models"', '"models"'),
            TABLE.replace('algorithms = ["RS256", ', "algorithms = ["),
            TABLE[: TABLE.index("[[tokens]]")],
        ):
            site.access.use(site.policy())
            used = site.identify(rsa_issuer.token())
            site.access.use(site.policy(text))
            assert used.revoked
            with pytest.raises(Unauthenticated, match="the token has been revoked"):
                used.require(Scope.INFER, "add1")

    with_site(tmp_path, rsa_issuer, check)


def test_a_changed_file_of_keys_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "WATCH_INTERVAL", 0.01)
    issuer = Issuer()

    async def scenario() -> None:
        site = Site(tmp_path, issuer)
        old = issuer.token()
        used = site.identify(old)
        (tmp_path / "keys.json").write_text("broken")
        while "the previous keys stay in force" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert site.identify(old) is used
        issuer.rotate("second", withdraw=True)
        (tmp_path / "keys.json").write_bytes(issuer.key_set)
        while not used.revoked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        site.identify(issuer.token()).require(Scope.INFER, "add1")
        assert "the key 'first', which its issuer" in site.refusal(old)
        site.access.close()

    run(scenario)


async def accepted(site: Site, token: str) -> Identity:
    """Tries a token until the keys have been fetched."""
    while True:
        try:
            return site.identify(token)
        except Unavailable:
            await asyncio.sleep(0.01)


def test_keys_are_fetched_and_rotated_keys_are_fetched_when_a_token_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "UNKNOWN_KEY_PAUSE", 0.0)

    async def scenario(issuer: Issuer) -> None:
        site = Site(tmp_path, issuer, jwks=issuer.url)
        with pytest.raises(Unavailable, match="are being fetched; try again"):
            site.identify(issuer.token())
        first = await accepted(site, issuer.token())
        assert issuer.fetches == 1
        old = issuer.token()
        issuer.rotate("second")
        await accepted(site, issuer.token())
        assert issuer.fetches == 2
        assert not first.revoked
        site.identify(old)
        issuer.rotate("third", withdraw=True)
        await accepted(site, issuer.token())
        assert first.revoked
        site.access.close()

    with served(Issuer()) as issuer:
        run(lambda: scenario(issuer))


DISCOVERED = """
[[tokens]]
issuer = "{issuer}"
audience = "backline"
scopes = {{ "models:infer" = ["infer"] }}
"""


def discovering(issuer: Issuer, folder: Path, changed: Mapping[str, Any] = MappingProxyType({})) -> Access:
    """The access of a server that is given only the issuer's URL. `changed` are fields of its metadata."""
    issuer.name = issuer.url.removesuffix("/keys")
    issuer.metadata = {"issuer": issuer.name, "jwks_uri": issuer.url, **changed}
    path = folder / "auth.toml"
    path.write_text(DISCOVERED.format(issuer=issuer.name))
    return Access(make_policy(read_auth_file(path), {}, folder))


def test_the_issuers_metadata_say_where_its_keys_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring, "UNKNOWN_KEY_PAUSE", 0.0)

    async def scenario(issuer: Issuer) -> None:
        access = discovering(issuer, tmp_path)

        async def name() -> str:
            while True:
                try:
                    header = {b"authorization": b"Bearer " + issuer.token().encode()}
                    return access.identify(header).name
                except Unavailable:
                    await asyncio.sleep(0.01)

        assert await name() == "alice"
        fetches = issuer.fetches
        assert await name() == "alice"
        assert issuer.fetches == fetches
        issuer.rotate("second", withdraw=True)
        issuer.metadata["jwks_uri"] = issuer.url + "/moved"
        assert await name() == "alice"
        access.close()

    with served(Issuer()) as issuer:
        run(lambda: scenario(issuer))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"issuer": "https://evil.example.org"}, "returned the metadata of another issuer, 'https://evil"),
        ({"jwks_uri": "http://169.254.169.254/keys"}, "cannot be fetched from 'http://169.254.169.254/keys'"),
        ({"jwks_uri": "/etc/passwd"}, "did not return the metadata of an issuer"),
        ({"jwks_uri": None}, "did not return the metadata of an issuer"),
    ],
)
def test_metadata_that_point_elsewhere_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], told: str
) -> None:
    async def scenario(issuer: Issuer) -> None:
        access = discovering(issuer, tmp_path, changed)
        while told not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        access.close()

    with served(Issuer()) as issuer:
        run(lambda: scenario(issuer))


def test_metadata_from_the_network_lead_to_nothing_on_this_machine() -> None:
    url = metadata_url("https://login.example.org/")
    told = {"issuer": "https://login.example.org/", "jwks_uri": "http://127.0.0.1:8080/keys"}
    with pytest.raises(InvalidArgument, match="which is not https"):
        key_ring._read_metadata(json.dumps(told).encode(), url)


def test_an_issuer_without_jwks_must_be_a_url_that_nobody_else_can_answer_for(tmp_path: Path) -> None:
    for issuer, told in (("login", "set jwks"), ("http://login.example.org", "use an https URL")):
        (tmp_path / "auth.toml").write_text(DISCOVERED.format(issuer=issuer))
        with pytest.raises(InvalidArgument, match=told):
            make_policy(read_auth_file(tmp_path / "auth.toml"), {}, tmp_path)


def test_all_tokens_of_a_subject_use_up_one_quota(tmp_path: Path, rsa_issuer: Issuer) -> None:
    limited = TABLE + "[tokens.quota]\nrequests_per_second = 0.001\nburst = 2\n"

    def check(site: Site) -> None:
        first = site.identify(rsa_issuer.token())
        second = site.identify(rsa_issuer.token(exp=int(time.time()) + 60))
        bob = site.identify(rsa_issuer.token(sub="bob"))
        for one in (first, second, bob):
            assert one.meter is not None
            one.meter.charge("add1", 0, time.monotonic())
        assert second.meter is not None
        with pytest.raises(QuotaExceeded, match="the token 'alice' may send"):
            second.meter.charge("add1", 0, time.monotonic())
        site.access.use(site.policy(limited.replace("burst = 2", "burst = 3")))
        assert first.meter is not None
        first.meter.charge("add1", 0, time.monotonic())
        with pytest.raises(QuotaExceeded):
            second.meter.charge("add1", 0, time.monotonic())
        site.access.use(site.policy())
        assert first.meter is None

    with_site(tmp_path, rsa_issuer, check, limited)


def test_what_a_removed_quota_has_counted_is_forgotten(tmp_path: Path, rsa_issuer: Issuer) -> None:
    limited = TABLE + "[tokens.quota]\nrequests_per_second = 0.001\n"

    def spend(site: Site) -> None:
        meter = site.identify(rsa_issuer.token()).meter
        assert meter is not None
        meter.charge("add1", 0, time.monotonic())

    def check(site: Site) -> None:
        spend(site)
        site.access.use(site.policy(limited.replace("0.001", "0.002")))
        with pytest.raises(QuotaExceeded):
            spend(site)
        site.access.use(site.policy())
        site.access.use(site.policy(limited))
        spend(site)

    with_site(tmp_path, rsa_issuer, check, limited)


def test_a_subject_cannot_renew_its_quota_with_other_spellings_of_its_token(
    tmp_path: Path, rsa_issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backline.access.access._MAX_REMEMBERED", 4)
    token = rsa_issuer.token().encode()

    def spend(site: Site, spaces: int) -> None:
        identity = site.access.identify({b"authorization": b"Bearer" + b" " * spaces + token})
        assert identity.meter is not None
        identity.meter.charge("add1", 0, time.monotonic())

    def check(site: Site) -> None:
        spend(site, 1)
        for spaces in range(2, 20):
            with pytest.raises(QuotaExceeded):
                spend(site, spaces)
        for number in range(20):  # meters that rest are forgotten
            site.identify(rsa_issuer.token(sub=f"idle {number}"))
        assert len(site.access._in_use) <= 6
        with pytest.raises(QuotaExceeded):
            spend(site, 1)

    with_site(tmp_path, rsa_issuer, check, TABLE + "[tokens.quota]\nrequests_per_second = 0.001\n")


def test_a_subject_with_the_name_of_a_key_is_another_caller(tmp_path: Path, rsa_issuer: Issuer) -> None:
    """It must not take the turns of the key's holder in queues, or continue its sequences."""

    def check(site: Site) -> None:
        callers = (
            site.access.identify({b"x-api-key": KEY.encode()}),
            site.identify(rsa_issuer.token(sub="app")),
            site.identify(rsa_issuer.token(sub="app2")),
        )
        assert [caller.name for caller in callers] == ["app", "app", "app2"]
        tickets = [Ticket(InferRequest("add1", {}), lambda *_: None) for _ in callers]
        for caller, ticket in zip(callers, tickets, strict=True):
            caller.follow(ticket)
        assert len({ticket.identity for ticket in tickets}) == 3
        again = site.identify(rsa_issuer.token(sub="app", exp=int(time.time()) + 60))
        assert again.holder == callers[1].holder

    with_site(tmp_path, rsa_issuer, check)


def test_unknown_keys_cause_few_fetches(tmp_path: Path) -> None:
    async def scenario(issuer: Issuer) -> None:
        site = Site(tmp_path, issuer, jwks=issuer.url)
        await accepted(site, issuer.token())
        attacker = Issuer()
        for number in range(100):
            attacker.key = f"key-{number}"
            assert f"signed with the key 'key-{number}'" in site.refusal(attacker.token())
        assert issuer.fetches == 1
        site.access.close()

    with served(Issuer()) as issuer:
        run(lambda: scenario(issuer))


def test_an_issuer_that_never_ends_its_header_does_not_hold_up_later_fetches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_ring, "FETCH_LIMIT", 0.2)
    monkeypatch.setattr(key_ring, "RETRY", 0.05)
    issuer = Issuer()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        async def scenario() -> None:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/keys"
            ring = KeyRing(url, asyncio.get_running_loop(), lambda: None)
            loop = asyncio.get_running_loop()
            silent, _ = await loop.run_in_executor(None, listening.accept)
            answering, _ = await loop.run_in_executor(None, listening.accept)
            with silent, answering:
                answering.recv(4096)
                head = f"HTTP/1.0 200 OK\r\ncontent-length: {len(issuer.key_set)}\r\n\r\n"
                answering.sendall(head.encode() + issuer.key_set)
                while ring.find(issuer.key, issuer.algorithm) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            ring.close()

        run(scenario)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_fetch_whose_server_sends_byte_by_byte_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Over https, the bytes are those of the TLS handshake."""
    monkeypatch.setattr(key_ring, "FETCH_LIMIT", 0.3)
    head = b"\x16\x03\x03\x40\x00" if scheme == "https" else b"HTTP/1.1 200 OK\r\nx-endless: "
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            with listening.accept()[0] as connection, contextlib.suppress(OSError):
                connection.sendall(head)
                while not stopped.wait(0.02):
                    connection.sendall(b"a")

        async def scenario() -> None:
            ring = KeyRing(f"{scheme}://127.0.0.1:{port}/keys", asyncio.get_running_loop(), lambda: None)
            fetching = next(one for one in threading.enumerate() if one.name == "jwks")
            await asyncio.get_running_loop().run_in_executor(None, fetching.join, 10)
            assert not fetching.is_alive()
            ring.close()

        port = listening.getsockname()[1]
        server = threading.Thread(target=drip)
        server.start()
        try:
            run(scenario)
        finally:
            stopped.set()
            server.join(10)


def test_keys_are_refreshed_in_the_background_and_kept_while_the_issuer_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_ring, "REFRESH", 0.02)
    monkeypatch.setattr(key_ring, "RETRY", 0.02)

    async def scenario(issuer: Issuer) -> None:
        site = Site(tmp_path, issuer, jwks=issuer.url)
        token = issuer.token()
        used = await accepted(site, token)
        issuer.answer = (500, {}, b"down")
        while "answered with status 500; the previous keys stay in force" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert site.identify(token) is used
        issuer.rotate("second", withdraw=True)
        issuer.answer = None
        while not used.revoked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        site.access.close()

    with served(Issuer()) as issuer:
        run(lambda: scenario(issuer))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((404, {}, b""), "answered with status 404"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "answered with status 302"),
        ((200, {}, b"<html>"), "is not a JSON Web Key Set"),
        ((200, {}, b"[1]"), "is not a JSON Web Key Set"),
        ((200, {}, b'{"keys": {}}'), "is not a JSON Web Key Set"),
        ((200, {}, b'{"keys": []}'), "has no key that this server can verify signatures with"),
        ((200, {}, b" " * (1024 * 1024 + 1)), "more than 1 MiB"),
    ],
)
def test_an_answer_without_keys_is_an_error(answer: tuple[int, dict[str, str], bytes], told: str) -> None:
    with served(Issuer()) as issuer:
        issuer.answer = answer
        with pytest.raises(InvalidArgument, match=told):
            fetch_keys(issuer.url, FetchAbort())


def test_a_server_of_keys_that_is_down_is_an_error() -> None:
    with served(Issuer()) as issuer:
        pass
    with pytest.raises(InvalidArgument, match="cannot be fetched"):
        fetch_keys(issuer.url, FetchAbort())


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("https://login.example.org/keys", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://localhost/keys", True),
        ("http://[::1]/keys", True),
        ("keys.json", True),
        ("/etc/keys.json", True),
        ("http://login.example.org/keys", False),
        ("http://localhost.example.org/keys", False),
        ("http://127.0.0.1@evil.example/keys", False),
        ("ftp://127.0.0.1/keys", False),
        ("file:///etc/keys.json", False),
        ("https:///keys", False),
    ],
)
def test_keys_come_only_from_where_nobody_can_replace_them(location: str, allowed: bool) -> None:
    if allowed:
        check_location(location)
    else:
        with pytest.raises(InvalidArgument, match="use an https URL"):
            check_location(location)


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def public(private: Any, algorithm: str, **more: Any) -> dict[str, Any]:
    return {**jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True), **more}


def test_keys_for_other_purposes_are_left_out(rsa_issuer: Issuer) -> None:
    good = rsa_issuer.published[0]
    others: list[dict[str, Any]] = [
        {**good, "use": "enc"},
        {**good, "key_ops": ["encrypt"]},
        {**good, "alg": "RSA-OAEP"},
        {**good, "alg": "HS256"},
        {**good, "alg": ["RS256"]},
        {**good, "kid": 7},
        {**good, "n": "AQAB"},
        {**good, "n": "???"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "unknown"},
        {},
        public(ec.generate_private_key(ec.SECP384R1()), "ES384"),
        public(rsa.generate_private_key(65537, 1024), "RS256"),
    ]
    assert [key.id for key in read_key_set(key_set(*others, good), "keys")] == ["first"]
    with pytest.raises(InvalidArgument, match="keys has no key that this server can verify"):
        read_key_set(key_set(*others), "keys")


def test_a_published_private_key_is_refused(rsa_issuer: Issuer) -> None:
    private = jwt.get_algorithm_by_name("RS256").to_jwk(rsa_issuer.private, as_dict=True)
    with pytest.raises(InvalidArgument, match="contains a private key"):
        read_key_set(key_set(private), "keys")


def test_a_token_without_a_key_id_is_verified_if_there_is_only_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Issuer()

    def check(site: Site) -> None:
        token = jwt.encode(issuer.claims(), issuer.private, "RS256")
        site.identify(token).require(Scope.INFER, "add1")

    with_site(tmp_path, issuer, check)
    issuer.rotate("second")
    with_site(
        tmp_path,
        issuer,
        lambda site: site.refusal(jwt.encode(issuer.claims(), issuer.private, "RS256")) and None,
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("jwks = ", "jwks_uri = "), "jwks"),
        (('"RS256", "ES256", "EdDSA"', '"HS256"'), "Invalid enum value 'HS256'"),
        (('"RS256", "ES256", "EdDSA"', '"none"'), "Invalid enum value 'none'"),
        (('"RS256", "ES256", "EdDSA"', ""), "algorithms"),
        (('["manage", "read"]', '["all"]'), "Invalid enum value 'all'"),
        (
            ("{jwks}", "http://login.example.org/keys"),
            "cannot be fetched from 'http://login.example.org/keys'",
        ),
        (("[[tokens]]", '[[tokens]]\nissuer = "x"\naudience = "y"\njwks = "z"\n[[tokens]]'), "scopes"),
    ],
)
def test_a_mistake_in_a_table_is_named(
    tmp_path: Path, rsa_issuer: Issuer, change: tuple[str, str], told: str
) -> None:
    with pytest.raises(InvalidArgument, match=told) as refused:
        with_site(tmp_path, rsa_issuer, lambda site: None, TABLE.replace(*change))
    assert "--auth" in refused.value.message


def test_two_tables_for_one_issuer_are_refused(tmp_path: Path, rsa_issuer: Issuer) -> None:
    table = TABLE[TABLE.index("[[tokens]]") :]
    with pytest.raises(InvalidArgument, match="two \\[\\[tokens\\]\\] tables have the issuer"):
        with_site(tmp_path, rsa_issuer, lambda site: None, table + table)


def test_a_missing_file_of_keys_stops_the_start_but_not_a_running_server(
    tmp_path: Path, rsa_issuer: Issuer
) -> None:
    with pytest.raises(InvalidArgument, match=r"the keys in '.*other.json' cannot be read"):
        with_site(tmp_path, rsa_issuer, lambda site: None, TABLE.replace("{jwks}", "other.json"))

    def check(site: Site) -> None:
        used = site.identify(rsa_issuer.token())
        with pytest.raises(InvalidArgument):
            site.access.use(site.policy(TABLE.replace("{jwks}", "other.json")))
        assert site.identify(rsa_issuer.token()).name == "alice"
        assert not used.revoked

    with_site(tmp_path, rsa_issuer, check)
