"""API keys of the client: where they come from, and what is said when the server refuses them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.access.keys import generate_key, hash_key
from backline_client.client.address import Address
from backline_client.client.credentials import StoredKeys, find_credential
from backline_client.client.errors import CredentialsRefused, InvalidArgument, PermissionDenied
from backline_client.client.options import ClientOptions
from support import models
from support.server import ServerProcess, serve

KEYS = {"all": generate_key(), "infer": generate_key()}
SCOPES = {"all": '["infer", "read", "manage"]', "infer": '["infer"]'}
ONES = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("keys")
    models.add1(folder / "models")
    (folder / "auth.toml").write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hash_key(key)}"\nscopes = {SCOPES[name]}\n'
            for name, key in KEYS.items()
        )
    )
    options = ("--auth", str(folder / "auth.toml"), "--model-control-mode", "explicit", "--load-model", "*")
    with serve(folder / "models", folder / "log", *options) as running:
        yield running


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of configurations, without keys."""
    monkeypatch.delenv("BACKLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, server: ServerProcess) -> str:
    return server.url if request.param == "http" else server.grpc_url


def test_a_key_lets_a_client_infer_stream_and_change_models(url: str) -> None:
    with backline.connect(url, api_key=KEYS["all"]) as client:
        np.testing.assert_array_equal(client["add1"](ONES)["OUTPUT0"], ONES + 1)
        assert [part["OUTPUT0"].shape for part in client["add1"].stream(ONES)] == [(1, 16)]
        client.load("add1")
        assert client.history()
        assert [model.state for model in client.models()] == ["READY"]


async def test_the_asynchronous_client_takes_a_key(url: str) -> None:
    async with backline.connect_async(url, api_key=KEYS["all"]) as client:
        assert (await client["add1"](ONES))["OUTPUT0"].shape == (1, 16)


def test_without_a_key_the_error_says_how_to_give_one(url: str) -> None:
    with backline.connect(url) as client:
        assert client.live()
        for refused in (
            client.metadata,
            lambda: client["add1"](ONES),
            lambda: [*client["add1"].stream(ONES)],
        ):
            with pytest.raises(
                CredentialsRefused,
                match=rf"needs a key with the scope .*\(the client sent no key: run 'backline login {url}',"
                " set BACKLINE_KEY, or pass api_key",
            ):
                refused()


def test_a_key_without_the_scope_is_named_by_its_source(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_KEY", f" {KEYS['infer']}\n")
    with (
        backline.connect(url) as client,
        pytest.raises(
            PermissionDenied, match=r"not have the scope 'manage'.*client sent the key in BACKLINE_KEY"
        ),
    ):
        client.load("add1")


def test_the_argument_precedes_the_variable_which_precedes_the_stored_key(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    StoredKeys().put(Address.parse(url).server, KEYS["all"])
    with backline.connect(url) as client:
        client.metadata()
    monkeypatch.setenv("BACKLINE_KEY", "of-another-server-0000")
    with backline.connect(url) as client, pytest.raises(CredentialsRefused, match="the key in BACKLINE_KEY"):
        client.metadata()
    with backline.connect(url, api_key=KEYS["all"]) as client:
        client.metadata()
    with backline.connect(url, headers={"X-API-Key": KEYS["all"]}) as client:
        client.metadata()


def test_a_stored_key_is_sent_to_its_server_only() -> None:
    StoredKeys().put(Address.parse("https://host").server, "bk_secret")

    def sent(url: str) -> str:
        return find_credential(Address.parse(url), ClientOptions(), {}).fields.get("Authorization", "")

    assert sent("https://host:443") == sent("grpcs://HOST") == "Bearer bk_secret"
    assert not any(
        map(sent, ("http://host:443", "https://host:444", "https://host/path", "https://host.example"))
    )


def test_stored_keys_are_private_and_removed_one_by_one(config: Path) -> None:
    keys = StoredKeys()
    keys.put("http://one", "1")
    keys.put("http://two", "2")
    assert keys.path.is_relative_to(config)
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.path.parent.stat().st_mode) == 0o700
    assert keys.remove("http://one")
    assert not keys.remove("http://one")
    assert (keys.get("http://one"), keys.get("http://two")) == ("", "2")


def test_a_file_that_others_may_read_is_refused(config: Path) -> None:
    keys = StoredKeys()
    keys.put("http://host:8000", "bk_secret")
    keys.path.chmod(0o644)
    with (
        backline.connect("http://host:8000") as client,
        pytest.raises(InvalidArgument, match="other users may read it: chmod 600"),
    ):
        client.metadata()


@pytest.mark.parametrize("key", ["", "two words", "bk_secret\r\nHost: evil", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        backline.connect("http://localhost:8000", api_key=key)
    assert "the API key from api_key" in refused.value.message
    assert not key or key not in refused.value.message


def test_two_credentials_are_refused() -> None:
    options = ClientOptions(api_key="bk_1", headers={"authorization": "Bearer bk_2"})
    with pytest.raises(InvalidArgument, match="api_key was given, and also the header 'authorization'"):
        find_credential(Address.parse("http://host"), options)


def test_a_key_is_in_no_representation() -> None:
    options = ClientOptions(api_key="bk_secret")
    assert "bk_secret" not in repr(options)
    assert "bk_secret" not in repr(find_credential(Address.parse("http://host"), options))


def test_no_headers_may_be_none() -> None:
    assert ClientOptions(headers=None).headers == {}  # type: ignore[arg-type]
