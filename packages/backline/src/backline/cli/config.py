"""`backline config`: shows, checks and converts configurations of models on disk, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from backline.cli.command import CommandGroup
from backline.cli.model_folder import (
    ModelFolder,
    check_ensembles,
    check_model,
    loaded_model,
    open_model,
    open_models,
    read_text,
    unloaded_model,
)
from backline.cli.options import json_option
from backline.cli.table import origin_row, print_table
from backline.dialects.open_inference.configuration import complete, describe, explained
from backline.repository.configuration import text, toml
from backline.repository.configuration.document import Document
from backline.repository.configuration.origins import origins
from backline_client.protos import to_plain
from backline_client.values.errors import InvalidArgument

_PATH = click.Path(exists=True, path_type=Path)
_EPILOG = """\b
Examples:
  backline config show models/add1
  backline config explain models/add1
  backline config validate models/
  backline config convert models/add1/config.pbtxt --output models/add1/model.toml"""

_name_option = click.option(
    "--config-name",
    default="",
    metavar="NAME",
    help="For models that have a file configs/NAME.pbtxt, use it as the configuration.",
)
_override_option = click.option(
    "--override",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON file with a configuration as sent in a load request.",
)
_inspect_option = click.option(
    "--inspect/--no-inspect",
    default=True,
    help="Load and measure the model, as a server does, to fill in what the file leaves out.",
)


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Show, check, explain and convert the configuration of models on disk."""


@command.command(
    epilog="\b\nExamples:\n  backline config show models/add1\n"
    "  backline config show models/add1 --format toml --no-inspect"
)
@click.argument("model_folder", type=_PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["pbtxt", "toml", "json"]),
    default="pbtxt",
    show_default=True,
    help="The output format.",
)
@json_option("Same as --format json.")
@_name_option
@_override_option
@_inspect_option
def show(
    model_folder: Path, form: str, as_json: bool, config_name: str, override: Path | None, inspect: bool
) -> None:
    """Print the complete configuration of a model, as /v2/models/NAME/explain-config would return it."""
    folder = open_model(model_folder, config_name, override)
    _, whole, _ = _configurations(folder, inspect)
    if as_json or form == "json":
        print(json.dumps(to_plain(whole)))
    else:
        document = Document("", whole)
        print(text.render(document) if form == "pbtxt" else toml.render(document), end="")


@command.command(
    epilog="\b\nExamples:\n  backline config explain models/add1\n"
    "  backline config explain models/add1 --override load.json --json"
)
@click.argument("model_folder", type=_PATH)
@json_option()
@_name_option
@_override_option
@_inspect_option
def explain(
    model_folder: Path, as_json: bool, config_name: str, override: Path | None, inspect: bool
) -> None:
    """Show where each value of a model's configuration comes from.

    Origins are file (the configuration, with line and column), override (the JSON of a load request), model
    (read from the model's file), server (decided by measuring the model) and default.
    """
    folder = open_model(model_folder, config_name, override)
    described, whole, warnings = _configurations(folder, inspect)
    values = origins(
        folder.document, described, whole, model_file=str(folder.model_file or ""), override=folder.overridden
    )
    if as_json:
        print(
            json.dumps(
                [
                    {"path": value.path, "value": value.value, "origin": value.origin, "where": value.where}
                    for value in values
                ]
            )
        )
        return
    above = f"{folder.path.absolute()}/"
    rows = [
        origin_row(value.path, value.value, value.origin, value.where.removeprefix(above)) for value in values
    ]
    print_table(("field", "value", "origin", "where"), rows)
    for warning in (*folder.found.config.warnings, *warnings):
        click.echo(f"warning: {warning}", err=True)


@command.command(
    epilog="\b\nExamples:\n  backline config validate models/\n"
    "  backline config validate models/ more-models/\n"
    "  backline config validate models/add1 --load --json"
)
@click.argument("paths", nargs=-1, required=True, type=_PATH, metavar="PATH...")
@click.option(
    "--load", is_flag=True, help="Also load each model, to find where its configuration contradicts its file."
)
@click.option(
    "--tritonserver",
    "triton_defaults",
    is_flag=True,
    help="With --load: load the models as `backline tritonserver` does, which gives ONNX models Triton's"
    " default batch size.",
)
@json_option()
@_name_option
def validate(
    paths: tuple[Path, ...], load: bool, triton_defaults: bool, as_json: bool, config_name: str
) -> None:
    """Check the models of repositories, or a single model. Exits with status 1 if there are errors."""
    if triton_defaults and not load:
        raise click.UsageError("--tritonserver changes how models are loaded: add --load")
    checked = [
        check_model(path, found, load=load, triton_defaults=triton_defaults)
        for path in paths
        for found in open_models(path, config_name)
    ]
    # If only the folder of an ensemble was given, the models that the ensemble calls are unknown.
    if all(one.found.folder for one in checked):
        check_ensembles(checked)
    if as_json:
        print(
            json.dumps(
                [{"model": one.found.name, "errors": one.errors, "warnings": one.warnings} for one in checked]
            )
        )
    else:
        for one in checked:
            print(f"{one.found.name}: {'wrong' if one.errors else 'ok'}")
            for line in (
                *(f"error: {error}" for error in one.errors),
                *(f"warning: {warning}" for warning in one.warnings),
            ):
                print(f"  {line}")
        if not checked:
            print(f"{', '.join(map(str, paths))} {'has' if len(paths) == 1 else 'have'} no models")
    if any(one.errors for one in checked):
        raise click.exceptions.Exit(1)


@command.command(
    epilog="\b\nExamples:\n  backline config convert models/add1\n"
    "  backline config convert models/add1/model.toml --output config.pbtxt"
)
@click.argument("path", type=_PATH)
@click.option(
    "--to", type=click.Choice(["pbtxt", "toml"]), help="The format to write; default: the other format."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, which must not exist; default: print it.",
)
@json_option()
def convert(path: Path, to: str | None, output: Path | None, as_json: bool) -> None:
    """Convert config.pbtxt to model.toml or back. Comments are lost."""
    file = _configuration_file(path)
    is_toml = file.suffix == ".toml"
    try:
        content = read_text(file)
    except InvalidArgument as error:
        raise click.UsageError(f"{error.message}.") from None
    document = toml.parse(content, str(file)) if is_toml else text.parse(content, str(file))
    form = to or ("pbtxt" if is_toml else "toml")
    written = text.render(document) if form == "pbtxt" else toml.render(document)
    if output is not None:
        with output.open("x", encoding="utf-8") as target:
            target.write(written)
    if as_json:
        print(
            json.dumps(
                {
                    "source": str(file),
                    "format": form,
                    "output": str(output) if output else None,
                    "text": written,
                }
            )
        )
    elif output is None:
        print(written, end="")


def _configurations(folder: ModelFolder, inspect: bool) -> tuple[Any, Any, tuple[str, ...]]:
    """Returns the configuration of a model, the same configuration with all defaults filled in, and the
    warnings from loading the model.

    The model is loaded only if `inspect` is true. Both configurations then include what the load has found
    out.
    """
    model, warnings = (
        loaded_model(folder) if inspect else (unloaded_model(folder.found.name, folder.found.config), ())
    )
    described = explained(model, describe(model))
    return described, complete(described), warnings


def _configuration_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".pbtxt", ".toml"):
            raise click.UsageError(
                f"'{path}' is neither a .pbtxt nor a .toml file. Name a config.pbtxt or a model.toml."
            )
        return path
    files = [file for name in ("config.pbtxt", "model.toml") if (file := path / name).is_file()]
    if len(files) != 1:
        raise click.UsageError(
            f"'{path}' has {'both' if files else 'neither'} config.pbtxt {'and' if files else 'nor'}"
            f" model.toml. {'Name one of the two files.' if files else 'Name the folder of a model.'}"
        )
    return files[0]
