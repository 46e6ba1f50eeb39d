"""Default folders of users without a home."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
from backline.system.user_folders import user_cache, user_state
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
