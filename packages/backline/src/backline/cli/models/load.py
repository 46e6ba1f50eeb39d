"""`backline models load`, `unload` and `refresh`: change which models are loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from backline.cli.connection import connection_options
from backline.cli.models.entries import document, memory_text, reason_text, state_text
from backline.cli.models.progress import run_change
from backline.cli.numbers import Number
from backline.cli.options import json_option, version_option
from backline.cli.table import print_table
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex
from backline_client.values.errors import NotFound, Unavailable

wait_option = click.option(
    "--wait",
    type=Number(0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds to wait for a load, which continues in the server afterwards.",
)

_LOAD_EPILOG = """\b
Examples:
  backline models load basic_pitch
  backline models load basic_pitch --model-version 4
  backline models load basic_pitch --config '{"max_batch_size": 16}'
  backline models load tiny --config @config.json --file 1/model.onnx=build/model.onnx"""

_UNLOAD_EPILOG = """\b
Examples:
  backline models unload basic_pitch
  backline models unload basic_pitch --model-version 3"""


@click.command("load", epilog=_LOAD_EPILOG)
@click.argument("name")
@click.option(
    "--model-version",
    default="",
    help="A version to load in addition to those served; default: what the model's policy selects.",
)
@click.option(
    "--config", metavar="JSON", help="A configuration to use instead of the repository's: JSON, or @FILE."
)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="PATH=FILE",
    help="A file to use instead of the repository's; needs --config; repeatable.",
)
@wait_option
@json_option()
@connection_options
def load_model(
    url: str,
    options: ClientOptions,
    name: str,
    model_version: str,
    config: str | None,
    files: tuple[str, ...],
    wait: float,
    as_json: bool,
) -> None:
    """Load a model, or reload its changed versions. An old version serves until the new one is ready."""
    if files and config is None:
        raise click.UsageError("--file needs --config; pass --config '{}' if the files need no configuration")
    text, contents = None if config is None else _config(config), dict(map(_file, files))

    async def load(client: AsyncClient) -> None:
        await client.load(name, model_version, config=text, files=contents, timeout=wait)

    _, after = run_change(url, options, load, model=name, version=model_version, quiet=as_json)
    _print_versions(after, as_json)


@click.command("unload", epilog=_UNLOAD_EPILOG)
@click.argument("name")
@version_option("all")
@click.option(
    "--dependents",
    is_flag=True,
    help="Also unload the models that this ensemble calls and no other model needs.",
)
@json_option()
@connection_options
def unload_model(
    url: str, options: ClientOptions, name: str, model_version: str, dependents: bool, as_json: bool
) -> None:
    """Unload a model or one version of it, after finishing its requests in flight."""

    async def unload(client: AsyncClient) -> None:
        # A server does not refuse to unload an unknown model, but here the name is probably misspelt.
        if all(entry.name != name for entry in await client.models()):
            raise NotFound(f"failed to unload '{name}': the server has no such model")
        await client.unload(name, model_version, dependents=dependents)

    _, after = run_change(url, options, unload, model=name, version=model_version, quiet=True)
    _print_versions(after, as_json)


@click.command(
    "refresh",
    epilog="\b\nExamples:\n  backline models refresh\n"
    "  backline models refresh --json --url http://server:8000",
)
@wait_option
@json_option()
@connection_options
def refresh_models(url: str, options: ClientOptions, wait: float, as_json: bool) -> None:
    """Make the server scan its repositories now and, in mode poll, load what is new.

    The exit status is 1 if a version has failed to load, now or before.
    """

    async def refresh(client: AsyncClient) -> None:
        await client.refresh(timeout=wait)

    _, after = run_change(url, options, refresh, quiet=as_json)
    _print_versions(after, as_json)
    if failed := [one for one in after if one.state == "UNAVAILABLE" and one.reason not in ("", "unloaded")]:
        names = ", ".join(f"'{one.name}' version {one.version or '-'} ({one.reason})" for one in failed)
        raise Unavailable(f"failed to load {names}")


def _print_versions(entries: Sequence[ModelIndex], as_json: bool) -> None:
    if as_json:
        print(json.dumps([document(entry) for entry in entries]))
    elif not entries:
        print("no versions left")
    else:
        rows = [
            (
                entry.name,
                entry.version or "-",
                state_text(entry),
                memory_text(entry),
                reason_text(entry),
            )
            for entry in entries
        ]
        print_table(("model", "version", "state", "memory", "reason"), rows, right=("memory",))


def _config(text: str) -> str:
    if text.startswith("@"):
        text = _read(Path(text[1:]), "--config").decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"the configuration is not JSON: {error}", param_hint="--config") from None
    if not isinstance(found, dict):
        raise click.BadParameter(
            'expected an object, for example {"max_batch_size": 16}', param_hint="--config"
        )
    return text


def _file(text: str) -> tuple[str, bytes]:
    path, equals, local = text.partition("=")
    if not equals:
        raise click.BadParameter(
            f"'{text}' is not of the form PATH=FILE, for example 1/model.onnx=build/model.onnx",
            param_hint="--file",
        )
    return path, _read(Path(local), "--file")


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.BadParameter(
            f"cannot read '{path}': {error.strerror or error}", param_hint=option
        ) from None
