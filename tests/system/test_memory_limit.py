"""How much memory a process may use, by the kernel's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backline.system.memory import memory_limit
from support.repositories import put

MIB = 1 << 20
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": 256 * MIB}, 256 * MIB),
        ("0::/a.slice/b.service\n", {"a.slice/memory.max": 64 * MIB}, 64 * MIB),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/memory.max": 64 * MIB, "a.slice/b.service/memory.max": 32 * MIB},
            32 * MIB,
        ),
        ("0::/a\n", {"memory.max": "max", "a/memory.max": "max"}, MACHINE),
        ("9:memory:/docker/1\n0::/\n", {"memory/memory.limit_in_bytes": 128 * MIB}, 128 * MIB),
        ("9:cpu,memory:/a\n", {"memory/a/memory.limit_in_bytes": 128 * MIB}, 128 * MIB),
        ("9:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, MACHINE),
        ("3:cpu:/\n", {"memory.max": MIB}, MACHINE),
        ("", {}, MACHINE),
    ],
)
def test_the_lowest_limit_counts(own: str, limits: dict[str, object], expected: int, tmp_path: Path) -> None:
    for name, limit in limits.items():
        put(tmp_path / "groups" / name, f"{limit}\n")

    assert memory_limit(tmp_path / "groups", put(tmp_path / "own", own)) == expected


def test_a_system_without_control_groups_has_the_memory_of_the_machine(tmp_path: Path) -> None:
    assert memory_limit(tmp_path / "nothing", tmp_path / "nothing") == MACHINE
