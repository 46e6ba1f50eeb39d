"""`backline new`: a model to begin with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from backline.engine.errors import AlreadyExists, InvalidArgument

_TEMPLATES = Path(__file__).with_name("templates")
#: Stands for the name of the model in the paths of a template.
_NAME = "NAME"


@dataclass(frozen=True, slots=True)
class Template:
    """What a template is, and a request that it answers: the last part of the URL, and the body."""

    what: str
    method: str
    body: str


TEMPLATES = {
    "model": Template(
        "a class that answers one request at a time", "generate", '{"text": "Backline serves models"}'
    ),
    "batch": Template(
        "requests are joined and answered together",
        "infer",
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}',
    ),
    "stream": Template(
        "a request gets any number of responses", "generate_stream", '{"text": "one two three"}'
    ),
    "triton": Template(
        "a class and a configuration of Triton's Python backend",
        "infer",
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}',
    ),
    "pipeline": Template(
        "a model that asks another one of the server", "generate", '{"text": "the longest words first"}'
    ),
}
_EPILOG = """\b
Examples:
  backline new tagger && backline serve tagger
  backline new models/scorer --template batch
  backline new chat --template stream --requires transformers --requires torch==2.9.1"""


@click.command(epilog=_EPILOG)
@click.argument("path", type=click.Path(path_type=Path), metavar="NAME")
@click.option(
    "--template",
    type=click.Choice(tuple(TEMPLATES)),
    default="model",
    show_default=True,
    help="; ".join(f"{name}: {one.what}" for name, one in TEMPLATES.items()) + ".",
)
@click.option(
    "--requires",
    multiple=True,
    metavar="PACKAGE",
    help="A package for requirements.txt: the model gets its own environment.",
)
def command(path: Path, template: str, requires: tuple[str, ...]) -> None:
    """Write a Python model that can be served, and its test. NAME may be a path; nothing that exists is overwritten.

    The folder is that of a model: `backline serve NAME` serves it, and in the folder of other models it is one of them.
    """
    name = path.name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InvalidArgument(
            f"'{name}' is no good name for a model: it is part of URLs, so use letters, digits, '_', '-' and '.'"
        )
    if path.exists():
        raise AlreadyExists(f"'{path}' exists already; choose another name, or remove it")
    files = dict(_files(template, name))
    if requires:
        folder = path / name if template == "pipeline" else path
        files[(folder / "requirements.txt").relative_to(path)] = "".join(f"{one}\n" for one in requires)
    for file, text in files.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(text)
        print(f"wrote {path / file}")
    print(_next(path, name, TEMPLATES[template]))


def _files(template: str, name: str) -> Iterator[tuple[Path, str]]:
    """The files of a template, by path below the new folder."""
    root = _TEMPLATES / template
    for file in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        relative = file.relative_to(root)
        # The name of a test is that of a module, and its own: tests of many models run together.
        file_name = relative.name.replace(_NAME, re.sub(r"\W", "_", name))
        yield (
            Path(*(name if part == _NAME else part for part in relative.parts[:-1]), file_name),
            file.read_text(),
        )


def _next(path: Path, name: str, template: Template) -> str:
    where = shlex.quote(str(path))
    return f"""
Serve it:    backline serve {where}
Ask it:      curl localhost:8000/v2/models/{name}/{template.method} -d {shlex.quote(template.body)}
Test it:     pytest {where}
Stop in it:  backline serve {where} --debug {name}"""
