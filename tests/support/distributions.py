"""Writes what pip would write about a distribution, by which its plug-ins are found."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], version: str = "1.0"
) -> None:
    """Writes the metadata of a distribution, whose modules are in `folder`, which is a path of Python's."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def install_project(folder: Path, pyproject: str) -> None:
    """Like `install`, for the project that the text of a pyproject.toml describes."""
    project = tomllib.loads(pyproject)["project"]
    install(folder, project["name"], project["entry-points"], project["version"])
