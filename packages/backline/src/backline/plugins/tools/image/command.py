"""`backline image`: builds a container image with the software that the models of a repository need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import click

import backline
from backline.backends.registry import FORMATS, choose
from backline.cli.command import CommandGroup, run
from backline.engine.numbers import format_bytes
from backline.environments.requirements import find_requirements
from backline.repository.location import open_repository, plugin_of, split_name
from backline.repository.repository import FoundModel
from backline_client.system.user_folders import user_cache
from backline_client.values.errors import BacklineError, InvalidArgument

#: The programs that can build images, in order of preference.
BUILDERS = ("podman", "buildah", "docker")
#: The default base image. Any base image must have Python 3.11 or later, including the module venv.
BASE = "docker.io/library/python:3.13-slim"
#: The folders that the Containerfile copies; any of them may be empty.
_FOLDERS = ("wheels", "requirements", "models")


@click.group(cls=CommandGroup)
def command() -> None:
    """Build a container image for the models of a repository."""


_EPILOG = """\b
Examples:
  backline image build models/
  backline image build s3://bucket/models --tag registry.example.org/backline:1
  backline image build models/ --output image/ && docker build image/
  backline image build models/ --with-models
  backline image build models/ --wheels wheels/ --no-index --base localhost/python

The image holds Backline, the runtimes that the models need and the environments of Python models, but no
model: mount the repository at /models, or set BACKLINE_MODEL_REPOSITORY to its URL."""


@command.command(epilog=_EPILOG)
@click.argument("repository", metavar="REPO")
@click.option("--tag", default="backline", show_default=True, help="The name of the image.")
@click.option("--base", default=BASE, show_default=True, metavar="IMAGE", help="The image to build on.")
@click.option("--extra", "extras", multiple=True, help="Another extra of Backline to install; repeatable.")
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of wheels to install from, in addition to the package index.",
)
@click.option("--no-index", is_flag=True, help="Install from --wheels only.")
@click.option("--with-models", is_flag=True, help="Copy the models into the image too.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the Containerfile and what it copies to this folder, and build nothing.",
)
@click.option(
    "--builder", help=f"The program that builds; default: the first one found of {', '.join(BUILDERS)}."
)
def build(
    repository: str,
    tag: str,
    base: str,
    extras: tuple[str, ...],
    wheels: Path | None,
    no_index: bool,
    with_models: bool,
    output: Path | None,
    builder: str | None,
) -> None:
    """Build an image with just the runtimes and environments that the models of REPO need.

    Models are left out, so that the image stays the same when they change, unless --with-models is given.
    """
    if no_index and wheels is None:
        raise click.UsageError("--no-index needs --wheels, which is then the only source of packages")
    root = None if "://" in repository or repository.startswith("hf:") else Path(repository).absolute()
    if with_models and root is None:
        raise click.UsageError(
            f"--with-models copies a folder, but '{repository}' is a URL: the server can load it from there"
        )
    recipe = recipe_of(repository, run(_found(repository)), root)
    recipe = Recipe(tuple(sorted({*recipe.extras, *extras})), recipe.files)
    arguments = {
        "BASE": base,
        "BACKLINE": f"backline{_bracketed(recipe.extras)}=={backline.__version__}",
        "PIP_OPTIONS": "--no-index" if no_index else "",
        "VERSION": backline.__version__,
    }
    what = f"extras: {', '.join(recipe.extras) or 'none'}"
    if output is not None:
        if output.exists() and any(output.iterdir()):
            raise InvalidArgument(f"'{output}' is not empty; name a new folder for the Containerfile")
        write_context(output, recipe, root, wheels, arguments, with_models=with_models)
        print(f"Wrote '{output / 'Containerfile'}' ({what})")
        return
    program = _builder(builder)
    with TemporaryDirectory(prefix="backline-image-") as folder:
        write_context(Path(folder), recipe, root, wheels, arguments, with_models=with_models)
        _build(program, tag, Path(folder))
    print(f"Built {tag} ({what}{_size(program, tag)})")


def _bracketed(extras: Sequence[str]) -> str:
    return f"[{','.join(extras)}]" if extras else ""


async def _found(location: str) -> list[FoundModel]:
    repository = open_repository(location, formats=FORMATS, cache=user_cache())
    try:
        return await repository.scan()
    finally:
        await repository.close()


def write_context(
    folder: Path,
    recipe: Recipe,
    root: Path | None,
    wheels: Path | None,
    arguments: dict[str, str],
    *,
    with_models: bool,
) -> None:
    """Writes a Containerfile and the folders that it copies. `arguments` become the defaults of its ARGs.

    `root` is the folder of the models; None if the models are in a remote repository.
    """
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True)
    text = Path(__file__).with_name("Containerfile").read_text()
    lines = []
    for line in text.splitlines():
        keyword, _, rest = line.partition(" ")
        name = rest.partition("=")[0]
        lines.append(f"ARG {name}={arguments[name]}" if keyword == "ARG" and name in arguments else line)
    (folder / "Containerfile").write_text("\n".join(lines) + "\n")
    for wheel in () if wheels is None else sorted(wheels.glob("*.whl")):
        shutil.copy(wheel, folder / "wheels")
    if not any((folder / "wheels").glob("backline-*.whl")):
        _add_own_wheels(folder / "wheels")
    if root is None:
        return
    base = root if root.is_dir() else root.parent
    # The files keep their paths below the repository, so that a scan of the copied files finds the models.
    for name in recipe.files:
        target = folder / "requirements" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / name, target)
    if with_models and root.is_dir():
        shutil.copytree(root, folder / "models", dirs_exist_ok=True)
    elif with_models:
        shutil.copy(root, folder / "models")


def _add_own_wheels(folder: Path) -> None:
    """Adds the wheels of a server that was installed from a clone of the repository or from wheels, because
    no index may have them.
    """
    origins = [origin for name in ("backline-client", "backline") if (origin := _origin(name)) is not None]
    for origin in origins:
        if origin.is_file():
            shutil.copy(origin, folder)
    clones = [str(origin) for origin in origins if origin.is_dir()]
    if not clones:
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        *clones,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BacklineError(
            f"the wheels of Backline could not be built from the clone {' and '.join(clones)}:"
            f" {done.stderr.strip() or done.stdout.strip()}. Build them elsewhere, and name their folder with"
            " --wheels"
        )


def _origin(name: str) -> Path | None:
    """Returns the clone or wheel from which a distribution was installed; None if it came from an index."""
    clone = Path(backline.__file__).parents[3] / name
    if (clone / "pyproject.toml").is_file():
        return clone
    try:
        # Written by installers (PEP 610); absent if the package came from an index.
        origin = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    url = urlsplit(origin.get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _builder(wanted: str | None) -> str:
    names = (wanted,) if wanted else BUILDERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise BacklineError(
            f"no program named {' or '.join(names)} was found to build the image: install one of"
            f" {', '.join(BUILDERS)}, or write the Containerfile with --output and build it elsewhere"
        )
    return found


def _build(program: str, tag: str, folder: Path) -> None:
    # Only Docker's image format can contain a health check.
    form = [] if Path(program).name == "docker" else ["--format", "docker"]
    command = [program, "build", *form, "--tag", tag, "--file", str(folder / "Containerfile"), str(folder)]
    status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if status:
        raise BacklineError(
            f"{Path(program).name} could not build the image (status {status}); its output above says why"
        )


def _size(program: str, tag: str) -> str:
    """Returns the size of an image, preceded by a comma; "" if the program does not report the size."""
    command: Sequence[str] = (program, "image", "inspect", "--format", "{{.Size}}", tag)
    shown = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return f", {format_bytes(int(shown))}" if shown.isdigit() else ""


#: Files with these suffixes or names may be the code or configuration of a Python model, or list the packages
#: that it requires. Files of weights have other names.
_SUFFIXES = (".py", ".txt", ".toml", ".pbtxt")
_NAMES = ("uv.lock", ".python-version", "PYTHON_VERSION")
#: The maximum size in bytes of a file that describes an environment.
_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """The contents of an image: sorted `extras`, and `files` that describe the environments of the models.

    The paths of the files are relative to the root of the repository.
    """

    extras: tuple[str, ...]
    files: tuple[str, ...]


def recipe_of(location: str, models: Iterable[FoundModel], root: Path | None) -> Recipe:
    """Returns the recipe for the models at `location`. `root` is the folder there; None if `location` is
    remote.

    For a remote repository, the recipe lacks the environments of the models, because their files are not
    available. Raises InvalidArgument for a model that cannot be served, for example because its format is
    unknown.
    """
    plugin = plugin_of(split_name(location)[1])
    extras = set() if plugin is None else {plugin.extra} - {""}
    files: set[str] = set()
    for model in models:
        if model.problem:
            raise InvalidArgument(f"model '{model.name}' cannot be served: {model.problem}")
        if model.config.ensemble is not None:
            continue
        for version in model.versions:
            if version.path is None:
                continue
            path = (root or Path()) / version.path
            entry = choose(model.config, path)
            extras |= entry.extras(path)
            if root is not None and entry.hosted and _needs_environment(model, path, root):
                files |= {
                    name
                    for name, file in version.files.items()
                    if file.size <= _MAX_SIZE and _describes(name)
                }
    return Recipe(tuple(sorted(extras)), tuple(sorted(files)))


def _needs_environment(model: FoundModel, path: Path, root: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    return find_requirements(folder, root / model.folder, model.config.python) is not None


def _describes(name: str) -> bool:
    return name.endswith(_SUFFIXES) or name.rpartition("/")[2] in _NAMES
