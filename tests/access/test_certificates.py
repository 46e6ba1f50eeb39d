"""Which client certificates identify whom, tested with plain values."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from backline.access.access import Access
from backline.access.auth_file import make_policy, read_auth_file
from backline.access.keys import hash_key
from backline.access.rules import parse_alternative_name, parse_subject
from backline.access.scope import Scope
from backline.wire.application import Certificate, Ingress
from backline_client.values.errors import Forbidden, InvalidArgument, QuotaExceeded, Unauthenticated

#: Fixed, as workers of one test run must collect the same tests.
KEY = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I"
TABLES = f"""
[anonymous]
scopes = ["metrics"]
[[keys]]
name = "operator"
sha256 = "{hash_key(KEY)}"
scopes = ["manage"]
[[certificates]]
name = "app"
subject = "CN=app, O=Example"
scopes = ["infer"]
models = ["add*"]
[[certificates]]
name = "mesh"
san = "uri:spiffe://example.org/reader"
scopes = ["read"]
[[certificates]]
name = "both"
subject = "CN=both"
san = "dns:Both.example.org"
scopes = ["admin"]
"""


def certificate(*names: str, expires: float = 60.0) -> Certificate:
    subject = frozenset(name for name in names if "=" in name)
    return Certificate(subject, frozenset(names) - subject, time.time() + expires)


def access(tmp_path: Path, text: str = TABLES) -> Access:
    return Access(make_policy(read_auth_file(write(tmp_path, text)), {}))


APP = certificate("CN=app", "O=Example", "OU=anything", "DNS:app.example.org")


@pytest.mark.parametrize(
    ("presented", "name"),
    [
        (APP, "app"),
        (certificate("CN=app", "O=Other"), ""),
        (certificate("CN=app2", "O=Example"), ""),
        (certificate("CN=APP", "O=Example"), ""),
        (certificate("O=CN=app", "O=Example"), ""),
        (certificate("CN=x", "URI:spiffe://example.org/reader"), "mesh"),
        (certificate("CN=x", "URI:spiffe://example.org/reader/more"), ""),
        (certificate("CN=x", "DNS:spiffe://example.org/reader"), ""),
        (certificate("CN=both", "DNS:both.example.org", "DNS:other.example.org"), "both"),
        (certificate("CN=both", "DNS:other.example.org"), ""),
        (certificate(), ""),
        (None, ""),
    ],
)
def test_a_table_applies_to_certificates_with_all_of_its_names(
    tmp_path: Path, presented: Certificate | None, name: str
) -> None:
    assert access(tmp_path).identify({}, Ingress(certificate=presented)).name == name


def test_the_first_table_that_applies_decides(tmp_path: Path) -> None:
    presented = certificate("CN=app", "O=Example", "URI:spiffe://example.org/reader")
    found = access(tmp_path).identify({}, Ingress(certificate=presented))
    assert found.name == "app"
    found.require(Scope.INFER, "add1")
    with pytest.raises(Forbidden, match="the certificate 'app' does not have the scope 'read'"):
        found.require(Scope.READ, "add1")


def test_a_key_comes_before_the_certificate_and_a_wrong_one_is_not_forgiven(tmp_path: Path) -> None:
    found, ingress = access(tmp_path), Ingress(certificate=APP)
    assert found.identify({b"x-api-key": KEY.encode()}, ingress).name == "operator"
    with pytest.raises(Unauthenticated):
        found.identify({b"x-api-key": b"bk_wrong"}, ingress)


def test_a_certificate_without_a_table_is_anonymous_and_the_error_says_so(tmp_path: Path) -> None:
    found = access(tmp_path).identify({}, Ingress(certificate=certificate("CN=stranger")))
    found.require(Scope.METRICS, None)
    with pytest.raises(Unauthenticated, match=r"applies to the client's certificate \(CN=stranger\)"):
        found.require(Scope.INFER, "add1")


def test_an_identity_ends_with_its_certificate(tmp_path: Path) -> None:
    late = certificate("CN=app", "O=Example", expires=-1)
    with pytest.raises(Unauthenticated, match="the certificate 'app' has expired; connect again"):
        access(tmp_path).identify({}, Ingress(certificate=late)).require(Scope.INFER, "add1")
    text = TABLES.replace('models = ["add*"]', "expires = 2020-01-01")
    with pytest.raises(Unauthenticated, match="has expired"):
        access(tmp_path, text).identify({}, Ingress(certificate=APP)).require(Scope.INFER, "add1")


def test_a_changed_file_also_changes_identities_in_use(tmp_path: Path) -> None:
    found = access(tmp_path)
    used = found.identify({}, Ingress(certificate=APP))
    for text, allowed in (
        (TABLES.replace('scopes = ["infer"]', 'scopes = ["read"]'), {Scope.READ}),
        (TABLES.replace("CN=app, O=Example", "CN=other"), {Scope.METRICS}),
        ("", set()),
        (TABLES, {Scope.INFER}),
    ):
        (tmp_path / "auth.toml").write_text(text)
        found.use(make_policy(read_auth_file(tmp_path / "auth.toml"), {}))
        again = found.identify({}, Ingress(certificate=APP))
        for identity in (used, again):
            assert {scope for scope in Scope if identity.may(scope, "add1")} == allowed


@pytest.mark.parametrize("text", ["", "app", "CN=", "=app", "CN=app,", "1=x", ","])
def test_a_malformed_subject_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a list of attributes"):
        parse_subject(text)


def test_a_comma_in_an_attribute_is_escaped() -> None:
    assert parse_subject(r"O=Example\, Inc., CN=app") == {"O=Example, Inc.", "CN=app"}


@pytest.mark.parametrize("text", ["app.example.org", "DNS:", "name:x", ":x", ""])
def test_an_alternative_name_without_a_known_kind_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="does not begin with its kind"):
        parse_alternative_name(text)


def test_a_table_without_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the certificate 'app' needs a subject"):
        access(tmp_path, '[[certificates]]\nname = "app"\nscopes = ["infer"]')


def test_callers_whose_certificate_no_table_names_share_the_quota_of_those_without(tmp_path: Path) -> None:
    text = TABLES + "[anonymous.quota]\nrequests_per_second = 1\n"
    found = access(tmp_path, text)
    one, other = (
        found.identify({}, Ingress(certificate=certificate(f"CN=stranger-{number}"))) for number in range(2)
    )
    nobody = found.identify({})
    assert nobody.meter is not None
    assert one.meter is other.meter is nobody.meter
    for changed in (TABLES, text):
        found.use(make_policy(read_auth_file(write(tmp_path, changed)), {}))
        assert one.meter is other.meter is nobody.meter
    app = found.identify({}, Ingress(certificate=APP))
    assert app.meter is None
    found.use(make_policy(read_auth_file(write(tmp_path, text.replace("CN=app", "CN=other"))), {}))
    assert app.meter is nobody.meter


def test_all_certificates_of_a_table_use_up_one_quota(tmp_path: Path) -> None:
    text = TABLES.replace('models = ["add*"]\n', 'models = ["add*"]\nquota = { max_in_flight = 2 }\n')
    found = access(tmp_path, text)
    renewed = certificate("CN=app", "O=Example", "DNS:new.example.org")
    first, second = (found.identify({}, Ingress(certificate=one)) for one in (APP, renewed))
    assert first.meter is second.meter is not None
    assert first.meter.whose == "the certificate 'app'"
    assert [quota.max_in_flight for quota in first.meter.quotas] == [2]
    found.use(make_policy(read_auth_file(write(tmp_path, text.replace("= 2 }", "= 3 }"))), {}))
    assert first.meter is second.meter is not None
    assert [quota.max_in_flight for quota in first.meter.quotas] == [3]
    found.use(make_policy(read_auth_file(write(tmp_path, TABLES)), {}))
    assert first.meter is second.meter is None


def test_use_counts_alike_whether_or_not_its_holder_is_remembered(tmp_path: Path) -> None:
    """The identity of a certificate is forgotten when the file changes, unless a connection still uses it."""

    def rules(quota: str) -> str:
        return TABLES.replace('models = ["add*"]\n', f'models = ["add*"]\n{quota}\n')

    def left(*files: str, connected: bool) -> bool:
        """Uses up the quota of the first file. Returns whether a request passes under the last file."""
        found = access(tmp_path, files[0])
        user = found.identify({}, Ingress(certificate=APP))
        assert user.meter is not None
        user.meter.charge("add1", 0, time.monotonic())
        if not connected:
            del user
        for text in files[1:]:
            found.use(make_policy(read_auth_file(write(tmp_path, text)), {}))
        meter = found.identify({}, Ingress(certificate=APP)).meter
        assert meter is not None
        try:
            meter.charge("add1", 0, time.monotonic())
        except QuotaExceeded:
            return False
        return True

    limited = rules("quota = { requests_per_second = 0.001 }")
    of_bytes = rules("quota = { bytes_per_second = 1e6 }")
    for connected in (False, True):
        assert not left(limited, limited.replace("0.001", "0.002"), connected=connected)
        assert not left(
            limited, of_bytes.replace("{ ", "{ requests_per_second = 0.001, "), connected=connected
        )
        # What a removed quota has counted is forgotten.
        assert left(limited, rules(""), limited, connected=connected)
        assert left(limited, of_bytes, limited, connected=connected)
        assert left(limited, TABLES.replace("CN=app", "CN=other"), limited, connected=connected)


def write(folder: Path, text: str) -> Path:
    path = folder / "auth.toml"
    path.write_text(text)
    return path
