"""Builds the repository of the music service: two networks from packages, and five Python models.

The networks, and the modules that `notes` and `speech` import, are those of the example music_transcription.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import transcription

HERE = Path(__file__).parent
#: The modules of music_transcription that each model imports.
_MODULES = {"notes": ("windows.py", "notes.py"), "speech": ("speech.py",)}
_UNCOMPILED = shutil.ignore_patterns("__pycache__")


def build(repository: Path) -> list[str]:
    """Writes a new repository. Returns a line about each network, to print.

    Raises FileNotFoundError if a package is missing, or another OSError if the folder cannot be written.
    """
    shutil.rmtree(repository, ignore_errors=True)
    lines = transcription.build_networks(repository)
    shutil.copytree(HERE / "models", repository, dirs_exist_ok=True, ignore=_UNCOMPILED)
    for model, modules in _MODULES.items():
        for module in modules:
            shutil.copyfile(transcription.FOLDER / module, repository / model / "1" / module)
    return lines


def release(repository: Path, model: str, version: str) -> None:
    """Adds a version to a model of a repository that servers are reading."""
    target = repository / model / version
    # A name that begins with a dot is ignored, so the version appears only when it is complete.
    partial = target.with_name(f".{version}")
    shutil.copytree(HERE / "releases" / model / version, partial, ignore=_UNCOMPILED)
    partial.rename(target)


def withdraw(repository: Path, model: str) -> None:
    """Removes a model from a repository that servers are reading."""
    (repository / model).rename(repository / f".{model}")


if __name__ == "__main__":
    print(*build(Path(*sys.argv[1:] or ["build/music_service/models"])), sep="\n")
