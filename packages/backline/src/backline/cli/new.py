"""`backline new`: creates a model or a plug-in to start from."""

from __future__ import annotations

import keyword
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from backline_client.values.errors import AlreadyExists, InvalidArgument

_TEMPLATES = Path(__file__).with_name("templates")
#: The placeholder for the model's name in the paths of a template.
_NAME = "NAME"


@dataclass(frozen=True, slots=True)
class Template:
    """A template of a model. `what` says what the template is for. `method` is the last part of the URL of an
    example request, and `body` its body.
    """

    what: str
    method: str
    body: str
    #: The extra of Backline that the model needs; empty if it needs none.
    extra: str = ""
    #: The name of an example file that a user could send instead of the tiny file in `body`.
    file: str = ""


#: A sound of 1 ms and an image of one red pixel, in base64.
_WAV = (
    "UklGRkQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YSAAAABAH0AfwODA4EAfQB/A4MDgQB9AH8DgwOBAH0AfwODA4A=="
)
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGO4IycHAALyARlzRAvLAAAAAElFTkSuQmCC"

TEMPLATES = {
    "model": Template(
        "a class that handles one request at a time", "generate", '{"text": "Backline serves models"}'
    ),
    "batch": Template(
        "a class that handles batches of requests",
        "infer",
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}',
    ),
    "stream": Template(
        "a model that sends several responses", "generate_stream", '{"text": "one two three"}'
    ),
    "triton": Template(
        "a class and configuration for Triton's Python backend",
        "infer",
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}',
    ),
    "audio": Template(
        "a model whose input is audio",
        "generate",
        f'{{"audio": {{"b64": "{_WAV}"}}}}',
        extra="audio",
        file="song.mp3",
    ),
    "image": Template(
        "a model whose input is an image",
        "generate",
        f'{{"image": {{"b64": "{_PNG}"}}}}',
        extra="image",
        file="photo.jpg",
    ),
    "tabular": Template(
        "a model with one input for each column of a table",
        "generate",
        '{"area": 50.0, "rooms": 2, "district": "suburb"}',
    ),
    "embeddings": Template(
        "a model that turns text into a vector", "generate", '{"text": "Backline serves models"}'
    ),
    "pipeline": Template(
        "a model that calls another model", "generate", '{"text": "the longest words first"}'
    ),
}


@dataclass(frozen=True, slots=True)
class PluginTemplate:
    """A template of a plug-in: what it is, its group of entry points, and the page that explains it."""

    what: str
    door: str
    page: str


PLUGIN_TEMPLATES = {
    "backend": PluginTemplate("a plug-in for a format of models", "backline.backends", "write-a-backend.md"),
    "dialect": PluginTemplate("a plug-in with routes of its own", "backline.dialects", "write-a-dialect.md"),
    "repository": PluginTemplate(
        "a plug-in for repositories elsewhere", "backline.repositories", "write-a-repository-scheme.md"
    ),
    "command": PluginTemplate("a plug-in with a command", "backline.commands", "write-a-command.md"),
}
_EPILOG = """\b
Examples:
  backline new tagger && backline serve tagger
  backline new models/scorer --template batch
  backline new listener --template audio
  backline new myformat --template backend
  backline new chat --template stream --requires transformers --requires torch==2.9.1"""


@click.command(epilog=_EPILOG)
@click.argument("path", type=click.Path(path_type=Path), metavar="NAME")
@click.option(
    "--template",
    type=click.Choice((*TEMPLATES, *PLUGIN_TEMPLATES)),
    default="model",
    show_default=True,
    help="; ".join(f"{name}: {one.what}" for name, one in (TEMPLATES | PLUGIN_TEMPLATES).items()) + ".",
)
@click.option(
    "--requires",
    multiple=True,
    metavar="PACKAGE",
    help="A package for requirements.txt, which gives the model its own environment; repeatable.",
)
def command(path: Path, template: str, requires: tuple[str, ...]) -> None:
    """Create a Python model or a plug-in, and its test. NAME may be a path; existing files are never
    overwritten.

    `backline serve NAME` serves the model. If NAME is inside a repository, the repository serves it too,
    except with --template pipeline, which creates a repository of two models.
    """
    name = path.name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InvalidArgument(
            f"'{name}' is not a usable model name: it is part of URLs,"
            " so use letters, digits, '_', '-' and '.', and do not start with '-' or '.'"
        )
    if path.exists():
        raise AlreadyExists(f"'{path}' already exists; choose another name, or remove it")
    if any(not one.strip() for one in requires):
        raise InvalidArgument("--requires needs the name of a package, such as numpy or torch==2.9.1")
    if template in PLUGIN_TEMPLATES:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
            raise InvalidArgument(
                f"'{name}' is not a usable name of a plug-in: it is the name of a Python package, so use"
                " lower-case letters, digits and '_', and start with a letter"
            )
        if requires:
            raise InvalidArgument("--requires is for models; list packages in the plug-in's pyproject.toml")
        files = dict(_plugin_files(template, name))
    else:
        files = dict(_files(template, name))
    if requires:
        folder = path / name if template == "pipeline" else path
        files[(folder / "requirements.txt").relative_to(path)] = "".join(f"{one}\n" for one in requires)
    for file, text in files.items():
        try:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(text)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # otherwise, the next attempt would be refused
            raise OSError(error.errno, error.strerror, str(path / file)) from None
    for file in files:
        print(f"wrote {path / file}")
    if template in PLUGIN_TEMPLATES:
        print(_next_of_plugin(path, PLUGIN_TEMPLATES[template]))
    else:
        print(_next(path, name, TEMPLATES[template]))


def _files(template: str, name: str) -> Iterator[tuple[Path, str]]:
    """Yields the path and the content of each file. Paths are relative to the new folder."""
    root = _TEMPLATES / template
    for file in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        relative = file.relative_to(root)
        # Test modules get unique names, so that the tests of several models can run together.
        file_name = relative.name.replace(_NAME, re.sub(r"\W", "_", name))
        yield (
            Path(*(name if part == _NAME else part for part in relative.parts[:-1]), file_name),
            file.read_text(),
        )


def _plugin_files(template: str, name: str) -> Iterator[tuple[Path, str]]:
    """Yields the path and the content of each file of a plug-in. Paths are relative to the new folder."""
    for root in (_TEMPLATES / "plugins" / "common", _TEMPLATES / "plugins" / template):
        for file in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            content = file.read_text().replace("DOOR", PLUGIN_TEMPLATES[template].door)
            relative = str(file.relative_to(root)).replace(_NAME, name)
            yield Path(relative), content.replace(_NAME, name).replace("Name", _class_name(name))


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _next_of_plugin(path: Path, template: PluginTemplate) -> str:
    where = shlex.quote(str(path))
    return f"""
Install it:  pip install --editable {shlex.quote(f"{path}[test]")}
Test it:     pytest {where}
See it:      backline plugins list
Read:        docs/{template.page}"""


def _next(path: Path, name: str, template: Template) -> str:
    where = shlex.quote(str(path))
    needs = f"\nInstall:     pip install 'backline[{template.extra}]'" if template.extra else ""
    sent = f"\nSend a file: backline infer {name} --input {template.file}" if template.file else ""
    return f"""{needs}
Serve it:    backline serve {where}
Call it:     curl localhost:8000/v2/models/{name}/{template.method} -d {shlex.quote(template.body)}{sent}
Test it:     pytest {where}
Debug it:    backline serve {where} --debug {name}"""
