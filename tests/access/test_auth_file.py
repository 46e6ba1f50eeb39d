"""The file of keys: what it may contain, and how a running server follows it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from backline.access import auth_file
from backline.access.access import Access
from backline.access.auth_file import AuthDocument, AuthFileWatch, make_policy, read_auth_file
from backline.access.keys import hash_key
from backline.access.scope import Scope
from backline.system import file_watch
from backline_client.values.errors import InvalidArgument, Unauthenticated
from support.waiting import until

#: Fixed, as workers of one test run must collect the same tests.
KEY = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I"
VALID = f'[[keys]]\nname = "app"\nsha256 = "{hash_key(KEY)}"\nscopes = ["infer"]\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_keys_get_their_scopes_models_and_expiry(tmp_path: Path) -> None:
    text = VALID + 'models = ["speech-*"]\nexpires = 2040-01-02T00:00:00Z\n[anonymous]\nscopes = ["read"]\n'
    policy = make_policy(read_auth_file(write(tmp_path / "auth.toml", text)), {})
    (identity,) = policy.keys.values()
    assert identity.name == "app"
    assert identity.may(Scope.INFER, "speech-1")
    assert not identity.may(Scope.INFER, "add1")
    assert identity.expires == 2209075200
    assert policy.anonymous.may(Scope.READ, None)
    assert not policy.anonymous.may(Scope.INFER, None)


def test_a_key_with_a_date_expires_at_midnight_utc(tmp_path: Path) -> None:
    text = VALID + "expires = 2040-01-02\n"
    (identity,) = make_policy(read_auth_file(write(tmp_path / "auth.toml", text)), {}).keys.values()
    assert identity.expires == 2209075200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (VALID + "scope = 1", "unknown field `scope` .* Did you mean 'scopes'"),
        (VALID.replace("infer", "all"), "Invalid enum value 'all'"),
        (VALID.replace(hash_key(KEY), KEY), "sha256"),
        (VALID + "models = []", "models"),
        (VALID.replace("app", "a b"), "name"),
        (VALID + VALID, "two keys are named 'app'"),
        (VALID + VALID.replace("app", "other"), "'other' has the same hash as another key"),
        (VALID + 'expires = "soon"', "expires"),
        (VALID + "[keys.quota]\nrate = 1", "unknown field `rate`"),
        (VALID + "[keys.quota]\nrequests_per_second = 0", "requests_per_second"),
        (VALID + "[keys.quota]\nmax_in_flight = 0", "max_in_flight"),
        (VALID + "[keys.quota]\nburst = 1", "key 'app' has a burst but no requests_per_second"),
        (VALID + "[keys.quota]", "the quota of key 'app' limits nothing"),
        (VALID + "[[keys.quotas]]\nmax_in_flight = 1", "models"),
        (VALID + 2 * '[[keys.quotas]]\nmodels = ["a"]\nmax_in_flight = 1\n', "are for the same models"),
        (
            VALID
            + '[[keys.quotas]]\nmodels = ["a", "b"]\nmax_in_flight = 1\n'
            + '[[keys.quotas]]\nmodels = ["b", "a"]\nmax_in_flight = 2\n',
            "are for the same models",
        ),
        ("[anonymous.quota]", "the quota of \\[anonymous\\] limits nothing"),
        ("keys = 1", "keys"),
        ("[key]\n", "unknown field `key`. Did you mean 'keys'"),
        ("a = ", "is not valid"),
        ("\x00", "is not valid"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told) as refused:
        make_policy(read_auth_file(write(tmp_path / "auth.toml", text)), {})
    assert "--auth" in refused.value.message


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "0", "-1", "1e400", "5e-324", "1" + 30 * "0"])
@pytest.mark.parametrize("name", ["requests_per_second", "bytes_per_second", "burst", "max_in_flight"])
def test_a_number_that_is_not_allowed_is_named(tmp_path: Path, name: str, value: str) -> None:
    path = write(
        tmp_path / "auth.toml",
        VALID + f"[keys.quota]\nrequests_per_second = 1\n{name} = {value}\n"
        if name != "requests_per_second"
        else VALID + f"[keys.quota]\n{name} = {value}\n",
    )
    with pytest.raises(InvalidArgument) as refused:
        make_policy(read_auth_file(path), {})
    assert refused.value.message.startswith(f"--auth: '{path}' is not valid: ")
    if name in ("requests_per_second", "bytes_per_second"):
        assert f"the quota of key 'app' has {name} = " in refused.value.message
        assert "expected a number from 1e-06 to 1e+12; for no limit, remove" in refused.value.message


@pytest.mark.parametrize("value", ["1e-6", "1e12", "0.5"])
def test_extreme_rates_work(tmp_path: Path, value: str) -> None:
    text = VALID + f"[keys.quota]\nrequests_per_second = {value}\nbytes_per_second = {value}\n"
    policy = make_policy(read_auth_file(write(tmp_path / "auth.toml", text)), {})
    Access(policy).identify({b"x-api-key": KEY.encode()})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read: No such file"):
        read_auth_file(tmp_path / "auth.toml")


def test_containers_take_keys_from_the_environment() -> None:
    policy = make_policy(AuthDocument(), {"BACKLINE_API_KEY": KEY, "BACKLINE_ADMIN_KEY": "k" * 16})
    user, admin = policy.keys[hash_key(KEY)], policy.keys[hash_key("k" * 16)]
    assert user.may(Scope.INFER, "m")
    assert not user.may(Scope.MANAGE, "m")
    assert admin.may(Scope.ADMIN, None)
    with pytest.raises(InvalidArgument, match="BACKLINE_API_KEY has 5 characters"):
        make_policy(AuthDocument(), {"BACKLINE_API_KEY": "short"})


def test_a_running_server_follows_the_file_but_not_into_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "WATCH_INTERVAL", 0.01)
    path = write(tmp_path / "auth.toml", VALID)
    given = {b"x-api-key": KEY.encode()}

    async def scenario() -> None:
        access = Access(make_policy(read_auth_file(path), {}))
        watch = AuthFileWatch(path, access, asyncio.get_running_loop())
        try:
            app = access.identify(given)
            for text, told in (("[[keys]]", "the previous keys stay in force"), (None, "cannot be read")):
                if text is None:
                    path.unlink()
                else:
                    write(path, text)
                while told not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert access.identify(given) is app
            write(path, "")
            while access.policy.keys:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises(Unauthenticated):
                access.identify(given)
            assert app.revoked
        finally:
            watch.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


async def test_a_file_is_read_on_a_thread_and_the_latest_read_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "auth.toml", VALID)
    access = Access(make_policy(read_auth_file(path), {}))
    reads: list[threading.Event] = []

    def read_slowly(path: Path) -> AuthDocument:
        document, go_on = read_auth_file(path), threading.Event()
        reads.append(go_on)
        assert go_on.wait(30)
        return document

    reloaded = asyncio.Event()
    monkeypatch.setattr(auth_file, "read_auth_file", read_slowly)
    watch = AuthFileWatch(path, access, asyncio.get_running_loop(), lambda error: reloaded.set())
    try:
        watch.reload()
        await asyncio.to_thread(until, lambda: len(reads) == 1)
        write(path, "")
        watch.reload()
        await asyncio.to_thread(until, lambda: len(reads) == 2)
        reads[1].set()
        await asyncio.wait_for(reloaded.wait(), 30)
        reloaded.clear()
        reads[0].set()
        write(path, "")
        watch.reload()
        await asyncio.to_thread(until, lambda: len(reads) == 3)
        reads[2].set()
        await asyncio.wait_for(reloaded.wait(), 30)
        assert not access.policy.keys
    finally:
        for read in reads:
            read.set()
        watch.close()
