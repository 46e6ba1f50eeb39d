"""Default folders of users."""

from __future__ import annotations

import os
import subprocess
import sys

import platformdirs
import pytest

from backline_client.system.user_folders import user_cache, user_config, user_state


@pytest.mark.parametrize("home", [None, "/home/her", "relative"])
@pytest.mark.parametrize("given", [None, "", "relative", "/srv/folders", "/srv/with space/"])
def test_the_folders_are_those_of_platformdirs(
    monkeypatch: pytest.MonkeyPatch, given: str | None, home: str | None
) -> None:
    monkeypatch.delenv("HOME", raising=False) if home is None else monkeypatch.setenv("HOME", home)
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
        if given is not None:
            monkeypatch.setenv(variable, given)

    assert user_cache() == platformdirs.user_cache_path("backline")
    assert user_config() == platformdirs.user_config_path("backline")
    assert user_state() == platformdirs.user_state_path("backline")


PROGRAM = """
import os
from backline_client.system.user_folders import user_cache, user_state
user_cache(), user_state()  # a late import may be unreadable for another user
os.setuid(54321)
del os.environ["HOME"]
print(user_cache(), user_state())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can switch users")
def test_a_user_without_a_home_gets_the_root_folder_as_in_containers() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )

    assert done.stdout == "/.cache/backline /.local/state/backline\n", done.stderr
