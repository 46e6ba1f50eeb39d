"""`backline run`: loads a model, runs it once, and exits."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter

import click

from backline.backends.registry import FORMATS
from backline.cli.command import run
from backline.cli.inputs import input_option, lone_parameters, read_inputs
from backline.cli.model_folder import open_models, similar_path
from backline.cli.options import (
    cache_folder_option,
    json_option,
    trust_code_option,
    trust_pickle_option,
    trust_skops_option,
    version_option,
)
from backline.cli.result_files import check_destination, present, summary
from backline.embedded.embedded import Embedded
from backline.embedded.transport import InprocTransport
from backline.lifecycle.options import LifecycleOptions
from backline.repository.listing import place_below
from backline.repository.location import open_repository
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.result import InferResult
from backline_client.system.user_folders import user_cache
from backline_client.values.errors import InvalidArgument, NotFound

_URL = "inproc:once"
#: The maximum time, in seconds, to wait for unloading after Ctrl-C, because a run cannot be interrupted.
_REST_WITHIN = 1.0
_EPILOG = """\b
Examples:
  backline run models/add1 --input x=[[1,2,3,4]]
  backline run model.onnx --input x=random:1,16 --output outputs.npz
  backline run tagger/ --input text=hello
  backline run models/basic_pitch --input song.wav --output notes/
  backline run models/pipeline --with tagger --input text=hello
  backline run s3://bucket/models/add1 --input @x.npy --json"""


@click.command(epilog=_EPILOG)
@click.argument("model")
@input_option
@version_option("the newest")
@click.option(
    "--output",
    "-o",
    "destination",
    type=click.Path(path_type=Path),
    help="Save the outputs as .npz or .json, a single output as .npy, or into a folder.",
)
@json_option("Print the outputs as JSON.")
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="NAME",
    help="Another model of the same repository, for models that call it; repeatable.",
)
@trust_pickle_option
@trust_skops_option
@trust_code_option
@cache_folder_option
def command(
    model: str,
    inputs: tuple[str, ...],
    model_version: str,
    destination: Path | None,
    as_json: bool,
    others: tuple[str, ...],
    trust_pickle: bool,
    trust_skops_types: tuple[str, ...],
    trust_remote_code: bool,
    cache_folder: Path | None,
) -> None:
    """Run MODEL once, without a server, and show its outputs.

    MODEL is a model's folder (also inside a repository: models/add1), a model's file, or a URL as for
    `backline serve`. A decoupled model may send several responses; all of them are shown.
    """
    check_destination(destination, folders=True)
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    repository, name = find_model(model, whole=bool(others))
    with tempfile.TemporaryDirectory(prefix="backline-") as state, _without_errors("backline.lifecycle"):
        options = LifecycleOptions(
            isolate="never",  # this process has no other clients
            mode="explicit",
            trust_pickle=trust_pickle,
            trust_skops_types=trust_skops_types,
            trust_remote_code=trust_remote_code,
            cache_folder=cache_folder,
            state_folder=Path(state),
        )
        embedded = Embedded([repository], options)
        try:
            ran = run(
                _run(embedded, repository, cache_folder or user_cache(), name, others, model_version, inputs)
            )
        except KeyboardInterrupt:
            ran = None
    if ran is None:
        print(file=sys.stderr, flush=True)
        os._exit(130)  # a normal exit would wait for the threads of a load or a run in progress
    present(ran.results, destination, as_json=as_json)
    version, responses = summary(ran.results, model_version)
    print(
        f"{ran.name} version {version} loaded in {ran.loaded:.2f} s and {responses}"
        f" in {ran.answered * 1000:.2f} ms",
        file=sys.stderr,
    )


@contextmanager
def _without_errors(logger: str) -> Iterator[None]:
    """Drops the errors of a logger in the `with` block, because the command itself reports a failed load."""
    log = logging.getLogger(logger)

    def is_no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    log.addFilter(is_no_error)
    try:
        yield
    finally:
        log.removeFilter(is_no_error)


@dataclass(frozen=True, slots=True)
class _Run:
    """The responses of the model `name`, and how long the load and the request took, in seconds."""

    name: str
    results: list[InferResult]
    loaded: float
    answered: float


def find_model(model: str, *, whole: bool) -> tuple[str, str]:
    """Returns the repository to open, and the name of the model in this repository. The name is "" for a URL.

    If `whole` is true or the model is an ensemble, the repository is the folder that contains the model's
    folder, so that other models are found too. Raises BacklineError if there is no such model.
    """
    if "://" in model or model.startswith("hf:"):
        return model, ""
    path = Path(model).absolute()
    if not path.exists():
        raise NotFound(f"'{model}' does not exist{similar_path(path)}")
    try:
        found = open_models(path)
    except InvalidArgument:  # the folder may be an ensemble, which can consist of a configuration alone
        if all(one.config.ensemble is None for one in open_models(path.parent) if one.folder == path.name):
            raise
        return str(path.parent), path.name
    names = ", ".join(f"'{Path(model) / one.name}'" for one in found[:8])
    if len(found) != 1:
        raise InvalidArgument(
            f"'{model}' is a repository, not a model; name one of its models: {names or 'it has none'}"
        )
    (only,) = found
    if only.folder and path.is_dir():
        return str(path), only.name
    if whole or only.config.ensemble is not None:
        return str(path.parent), path.name
    return str(path), only.name


async def _run(
    embedded: Embedded,
    repository: str,
    cache: Path,
    name: str,
    others: Sequence[str],
    version: str,
    inputs: Sequence[str],
) -> _Run:
    """Loads the models and sends the request."""
    client = AsyncClient(_URL, ClientOptions(timeout=inf))
    transport = InprocTransport(client.address, embedded)
    began = perf_counter()
    interrupted = False
    try:
        await transport.open()
        client = client.through(transport)
        name = name or await _only(client, repository, cache)
        for each in (*others, name):
            await client.load(each, version if each == name else None)
        loaded = perf_counter()
        handle = client.model(name, version)
        values = read_inputs(await handle.metadata(), inputs)
        parameters = lone_parameters(await handle.config())
        sent = perf_counter()
        try:
            results = [result async for result in handle.stream(values, parameters=parameters)]
        except NotFound as error:
            raise _with_hint(error) from None
        return _Run(name, results, loaded - began, perf_counter() - sent)
    except asyncio.CancelledError:
        interrupted = True
        raise
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REST_WITHIN if interrupted else None):
                await transport.close()


def _with_hint(error: NotFound) -> NotFound:
    """If the model that ran called a model that is not loaded, adds to the error the option that loads it."""
    missing = re.match(r"Request for unknown model: '([^']+)' is not found", error.message)
    return error if missing is None else NotFound(f"{error.message}; to load it too, add --with {missing[1]}")


async def _only(client: AsyncClient, repository: str, cache: Path) -> str:
    """Returns the name of the only model. Raises InvalidArgument if there are several models, or none."""
    names = sorted({entry.name for entry in await client.models()})
    if len(names) == 1:
        return names[0]
    message = f"'{repository}' is a repository, not a model; it holds {', '.join(names) or 'none'}"
    if names:
        opened = open_repository(repository, formats=FORMATS, cache=cache)
        try:
            first, *_ = await opened.scan()
        finally:
            await opened.close()
        message += f": name the folder of one, such as '{place_below(opened.location, first.folder)}'"
    raise InvalidArgument(message)
