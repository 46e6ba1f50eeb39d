"""Which requests of web pages are let in, tested with plain values."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from backline.access.browsers import BrowserPolicy, parse_origin
from backline.access.scope import Scope
from backline_client.values.errors import InvalidArgument

POLICY = BrowserPolicy.of(hosts=["models", "*.example.org"], origins=["https://console.example.com"])
GUARDED = [Scope.INFER, Scope.MANAGE, Scope.ADMIN]
CHANGING = [Scope.MANAGE, Scope.ADMIN]
READING = [Scope.READ, Scope.METRICS]


def refusal(scope: Scope, *, local: bool = False, host: str | None = "localhost:8000", **fields: str) -> str:
    """The refusal of a request, empty if it is allowed. Field names have "_" for "-"."""
    headers = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    if host is not None:
        headers[b"host"] = host.encode()
    return POLICY.refusal(scope, headers, local=local) or ""


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/octet-stream",
        "application/grpc",
        "application/x-www-form-urlencoded",
    ],
)
def test_clients_other_than_browsers_may_do_everything(scope: Scope, kind: str | None) -> None:
    fields = {} if kind is None else {"content_type": kind}

    assert refusal(scope, **fields) == ""


@pytest.mark.parametrize("scope", GUARDED)
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "http://localhost",
        "null",
        "",
        "https://console.example.com.evil.example",
        "http://console.example.com",
        "https://console.example.com:8443",
        "file://",
        "http://localhost:8000, http://evil.example",
    ],
)
def test_pages_of_other_origins_are_refused(scope: Scope, origin: str) -> None:
    assert refusal(scope, origin=origin).startswith(f"Origin '{origin}'")


@pytest.mark.parametrize("scope", GUARDED)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "something-new"])
def test_requests_that_come_from_another_site_are_refused_without_an_origin(scope: Scope, site: str) -> None:
    assert refusal(scope, sec_fetch_site=site).startswith(f"Sec-Fetch-Site '{site}'")


@pytest.mark.parametrize("scope", GUARDED)
def test_a_page_of_the_same_name_over_plain_http_is_refused_by_its_site(scope: Scope) -> None:
    assert "Sec-Fetch-Site" in refusal(
        scope, host="models", origin="http://models", sec_fetch_site="cross-site"
    )


@pytest.mark.parametrize("scope", GUARDED)
@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_pages_of_the_server_itself_are_let_in(scope: Scope, site: str) -> None:
    assert refusal(scope, sec_fetch_site=site) == ""
    assert refusal(scope, sec_fetch_site=site, origin="http://localhost:8000") == ""


@pytest.mark.parametrize("scope", GUARDED)
def test_allowed_origins_are_let_in_from_wherever_they_are(scope: Scope) -> None:
    assert refusal(scope, origin="https://console.example.com", sec_fetch_site="cross-site") == ""


@pytest.mark.parametrize("scope", GUARDED)
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "Text/Plain;charset=UTF-8",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ],
)
@pytest.mark.parametrize(
    "sign",
    [
        {"referer": "http://evil.example/page"},
        {"origin": "https://console.example.com"},
        {"origin": "http://localhost:8000"},
        {"sec_fetch_site": "none"},
    ],
    ids=str,
)
def test_forms_are_refused_when_a_browser_sends_them(scope: Scope, kind: str, sign: dict[str, str]) -> None:
    assert refusal(scope, content_type=kind, **sign).startswith("Content-Type ")


@pytest.mark.parametrize("scope", GUARDED)
def test_json_is_let_in_from_a_browser(scope: Scope) -> None:
    assert refusal(scope, content_type="application/json", referer="http://localhost:8000/") == ""


def test_fetch_of_node_is_not_taken_for_a_browser() -> None:
    assert refusal(Scope.MANAGE, content_type="text/plain;charset=UTF-8", sec_fetch_mode="cors") == ""


@pytest.mark.parametrize("scope", CHANGING)
def test_changes_need_a_host_that_is_known(scope: Scope) -> None:
    message = refusal(scope, host="evil.example:8000")

    assert message.startswith("Host 'evil.example:8000'")
    assert message.endswith("--allowed-host evil.example")


@pytest.mark.parametrize("scope", GUARDED)
def test_pages_that_rebind_dns_are_refused(scope: Scope) -> None:
    fields = {"origin": "http://evil.example:8000", "sec_fetch_site": "same-origin"}

    assert refusal(scope, host="evil.example:8000", **fields).startswith("Host 'evil.example:8000'")


def test_programs_infer_under_any_name() -> None:
    assert refusal(Scope.INFER, host="model-service.namespace.svc:8000") == ""


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("host", ["models:8000", "eu.example.org", "[::1]:8000", "10.0.0.7", None])
def test_names_of_the_server_are_let_in(scope: Scope, host: str | None) -> None:
    assert refusal(scope, host=host) == ""


@pytest.mark.parametrize("scope", GUARDED)
def test_unix_socket_ignores_host_but_checks_the_origin(scope: Scope) -> None:
    proxied = {"origin": "http://evil.example", "sec_fetch_site": "same-origin"}

    assert refusal(scope, local=True, host="anything") == ""
    assert refusal(scope, local=True, host="evil.example", **proxied).startswith("Origin ")


@pytest.mark.parametrize("scope", READING)
def test_pages_that_rebind_dns_read_nothing(scope: Scope) -> None:
    message = refusal(scope, host="evil.example:8000")  # a GET of the same origin needs no other field

    assert message.startswith("Host 'evil.example:8000'")
    assert message.endswith("--allowed-host evil.example")


@pytest.mark.parametrize("scope", READING)
@pytest.mark.parametrize(
    "host",
    [
        "backline:8000",
        "backline.models.svc:8000",
        "backline.models.svc.cluster.local",
        "gpu.internal",
        "gpu.local",
    ],
)
def test_names_that_no_page_on_the_internet_has_may_read(scope: Scope, host: str) -> None:
    assert refusal(scope, host=host) == ""


@pytest.mark.parametrize("scope", READING)
@pytest.mark.parametrize("host", ["", ":8000", "svc.evil.example", "evil.example@backline", "back line"])
def test_other_names_do_not_pass_for_private_ones(scope: Scope, host: str) -> None:
    assert refusal(scope, host=host).startswith("Host ")


@pytest.mark.parametrize("scope", READING)
def test_reading_needs_no_origin_of_the_server(scope: Scope) -> None:
    assert refusal(scope, origin="null", content_type="text/plain") == ""


def test_health_is_open_to_all() -> None:
    assert refusal(Scope.HEALTH, host="evil.example", origin="https://evil.example") == ""


def test_without_options_no_origin_is_allowed() -> None:
    policy = replace(POLICY, origins=frozenset())
    headers = {b"host": b"localhost", b"origin": b"https://console.example.com"}

    assert "--cors-origin https://console.example.com" in (
        policy.refusal(Scope.INFER, headers, local=False) or ""
    )


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://console.example.org", "https://console.example.org"),
        ("HTTPS://Console.Example.org:443", "https://console.example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://localhost:8080", "http://localhost:8080"),
    ],
)
def test_origins_are_read_as_browsers_write_them(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text", ["*", "null", "", "example.org", "https://example.org/", "https://*.example.org", "https://a b"]
)
def test_malformed_origin_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="write only scheme, host and port"):
        parse_origin(text)


LAX = BrowserPolicy.of(hosts=["*", "models"])
#: What a page that rebinds DNS sends, at least: browsers send the first with every POST.
PAGE_FIELDS = [
    (b"origin", b"http://rebound.example.com"),
    (b"referer", b"http://rebound.example.com/page"),
    (b"sec-fetch-site", b"same-origin"),
    (b"accept-language", b"en"),
    (b"user-agent", b"Mozilla/5.0 (X11)"),
]


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("host", ["triton.example.com:8000", "triton", "localhost:8000"])
def test_any_host_lets_programs_use_any_name(scope: Scope, host: str) -> None:
    headers = {b"host": host.encode(), b"user-agent": b"curl/8.1", b"accept": b"*/*"}

    assert LAX.refusal(scope, headers, local=False) is None


@pytest.mark.parametrize("scope", [*CHANGING, *READING])
@pytest.mark.parametrize(("name", "value"), PAGE_FIELDS)
def test_any_host_lets_no_page_use_an_unknown_name(scope: Scope, name: bytes, value: bytes) -> None:
    headers = {b"host": b"rebound.example.com", name: value}

    assert "is not a known name" in (LAX.refusal(scope, headers, local=False) or "")


@pytest.mark.parametrize(("name", "value"), PAGE_FIELDS[:3])
def test_any_host_lets_no_page_infer_under_an_unknown_name(name: bytes, value: bytes) -> None:
    headers = {b"host": b"rebound.example.com", name: value}

    assert "is not a known name" in (LAX.refusal(Scope.INFER, headers, local=False) or "")
