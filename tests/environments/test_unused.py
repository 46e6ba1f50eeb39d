"""The environments that `backline env prune` removes."""

from __future__ import annotations

import pytest

from backline.environments.store import About, StoredEnvironment, User, unused

ABOUT = About("requirements.txt", "3.11.7", [], 0.0, 1)
MODEL = (User("m", "/m/1", "/m"),)
ENTRIES = (
    StoredEnvironment("forgotten", ABOUT, 990.0, (), in_use=False),
    StoredEnvironment("old", ABOUT, 500.0, MODEL, in_use=False),
    StoredEnvironment("recent", ABOUT, 990.0, MODEL, in_use=False),
    StoredEnvironment("served", ABOUT, 1.0, (), in_use=True),
)


@pytest.mark.parametrize(
    ("seconds", "gone"),
    [(None, ["forgotten"]), (400.0, ["forgotten", "old"]), (0.0, ["forgotten", "old", "recent"])],
)
def test_environments_unused_by_models_or_for_long_are_removed(
    seconds: float | None, gone: list[str]
) -> None:
    assert [entry.digest for entry in unused(ENTRIES, now=1000.0, seconds=seconds)] == gone
