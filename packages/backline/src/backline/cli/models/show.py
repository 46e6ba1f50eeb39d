"""`backline models list` and `show`: show the models on a server."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias
from urllib.parse import quote

import click

from backline.cli.command import run
from backline.cli.connection import connection_options
from backline.cli.models.entries import document, explain, labels_text, memory_text, reason_text, state_text
from backline.cli.options import json_option, version_option
from backline.cli.table import origin_row, print_table
from backline_client.client.address import Address
from backline_client.client.aio import AsyncClient
from backline_client.client.errors import InvalidArgument, PermissionDenied
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, ModelMetadata
from backline_client.client.sync import Client, Model
from backline_client.values.errors import BacklineError, NotFound
from backline_client.values.names import printable, version_order
from backline_client.values.signature import TensorSpec

_LIST_EPILOG = """\b
Examples:
  backline models list
  backline models list --json --url http://server:8000
  backline models list --all --url http://a:8000,http://b:8000
  backline models list --all --url http://backline-headless.models.svc:8000"""
_COLUMNS = ("model", "version", "state", "labels", "memory", "inferences", "reason")


@click.command("list", epilog=_LIST_EPILOG)
@json_option()
@click.option(
    "--all",
    "everywhere",
    is_flag=True,
    help="Ask every server: --url may list several URLs, separated by commas, and a host name stands for all"
    " of its addresses.",
)
@connection_options
def list_models(url: str, options: ClientOptions, as_json: bool, everywhere: bool) -> None:
    """List all models and versions with state, labels, memory and the progress of loads."""
    if everywhere:
        _list_everywhere(url, options, as_json)
        return
    with Client(url, options) as client:
        index, counts = _listed(client)
    if as_json:
        print(json.dumps([document(entry) for entry in index]))
    elif not index:
        print(f"{url} has no models")
    else:
        rows = [_row(entry, index, counts) for entry in index]
        print_table(_COLUMNS, rows, right=("memory", "inferences"))


def _list_everywhere(url: str, options: ClientOptions, as_json: bool) -> None:
    """Lists the models of several servers. Exits with status 1 if the request to any server fails."""
    servers = every_server(url)
    with ThreadPoolExecutor(len(servers)) as threads:
        answers = list(threads.map(lambda server: _ask(server, options), servers))
    if as_json:
        plain = [
            {"server": server, "error": answer.message}
            if isinstance(answer, BacklineError)
            else {"server": server, "models": [document(entry) for entry in answer[0]]}
            for server, answer in zip(servers, answers, strict=True)
        ]
        print(json.dumps(plain))
    else:
        rows: list[tuple[str, ...]] = []
        for server, answer in zip(servers, answers, strict=True):
            if isinstance(answer, BacklineError):
                rows.append((server, "-", "-", "NO ANSWER", "-", "-", "-", answer.message))
            else:
                index, counts = answer
                rows += [(server, *_row(entry, index, counts)) for entry in index]
                rows += [] if index else [(server, "-", "-", "no models", "-", "-", "-", "")]
        rows.sort(key=lambda row: (row[1], version_order(row[2]), row[0]))
        print_table(("server", *_COLUMNS), rows, right=("memory", "inferences"))
    if any(isinstance(answer, BacklineError) for answer in answers):
        raise SystemExit(1)


_Listing: TypeAlias = "tuple[Sequence[ModelIndex], Mapping[tuple[str, str], dict[str, Any]]]"


def _ask(url: str, options: ClientOptions) -> _Listing | BacklineError:
    try:
        with Client(url, options) as client:
            return _listed(client)
    except BacklineError as error:
        return error


def _listed(client: Client) -> _Listing:
    """Returns the model list of a server, and the counters of each version by model name and version."""
    index = client.models()
    try:
        return index, {(entry["name"], str(entry["version"])): entry for entry in client.statistics()}
    except BacklineError:  # not every server has the statistics extension
        return index, {}


def _row(
    entry: ModelIndex, index: Sequence[ModelIndex], counts: Mapping[tuple[str, str], dict[str, Any]]
) -> tuple[str, ...]:
    counters = counts.get((entry.name, entry.version), {})
    return (
        entry.name,
        entry.version or "-",
        state_text(entry),
        labels_text(entry, index),
        memory_text(entry),
        str(int(counters.get("inference_count", 0))) if counters else "-",
        reason_text(entry),
    )


def every_server(url: str) -> list[str]:
    """Returns the URLs of all servers that `url` refers to, in order and without duplicates.

    `url` is a list of URLs, separated by commas. A URL with a host name refers to a server at each address of
    the host, for example the pods behind a headless service. A URL with TLS is kept as it is, because
    certificates contain the host name, and so is a URL without a host. Raises InvalidArgument for a host that
    has no address.
    """
    found: dict[str, None] = {}
    for one in filter(None, map(str.strip, url.split(","))):
        address = Address.parse(one)
        if address.tls or not address.host:
            found[one] = None
            continue
        try:
            every = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InvalidArgument(
                f"the host '{address.host}' has no address: {error.strerror or error}"
            ) from None
        for family, *_, where in every:
            host = f"[{where[0]}]" if family == socket.AF_INET6 else where[0]
            found[f"{address.protocol}://{host}:{address.port}{address.path}"] = None
    if not found:
        Address.parse("")  # raises an error that shows examples
    return list(found)


_CALL_COUNTS = ("succeeded", "failed", "cancelled", "mean us")


@click.command(
    "show",
    epilog="\b\nExamples:\n  backline models show add1\n"
    "  backline models show add1 --model-version 2 --json\n  backline models show add1 --origins",
)
@click.argument("name")
@version_option("the one that serves requests without a version")
@click.option("--origins", is_flag=True, help="Show where each value of the configuration comes from.")
@json_option()
@connection_options
def show_model(
    url: str, options: ClientOptions, name: str, model_version: str, origins: bool, as_json: bool
) -> None:
    """Show the inputs, outputs, configuration and counters of a model."""
    if origins:
        _show_origins(run(_origins(url, options, name, model_version)), as_json)
        return
    with Client(url, options) as client:
        model = client.model(name, model_version)
        try:
            metadata = model.metadata()
        except NotFound as error:
            raise explain(error, client.models(), name, model_version) from None
        except BacklineError as error:
            _give_reason(client, name, error)
            raise
        config, statistics = _optional(model)
        entries = [entry for entry in _index(client) if entry.name == name]
    metadata = metadata.completed(config)
    if as_json:
        states = [document(entry) for entry in entries]
        print(
            json.dumps({**_document(metadata), "states": states, "config": config, "statistics": statistics})
        )
    else:
        _show(metadata, config, statistics, entries)


async def _origins(url: str, options: ClientOptions, name: str, version: str) -> list[dict[str, Any]]:
    """Returns the values in the configuration of a model, and for each value where it comes from."""
    async with AsyncClient(url, options) as client:
        transport = await client.transport()
        if not isinstance(transport, HttpTransport):
            raise InvalidArgument(f"--origins needs HTTP: use http://HOST:PORT instead of {url}")
        path = f"/v2/models/{quote(name, safe='')}"
        path += f"/versions/{quote(version, safe='')}" if version else ""
        told = await transport.json(f"{path}/config-origins".encode(), options.timeout)
    return list(told["values"])


def _show_origins(values: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
    else:
        print_table(("field", "value", "origin", "where"), [origin_row(**value) for value in values])


def _give_reason(client: Client, name: str, error: BacklineError) -> None:
    """Adds to the error the reason why the model is not ready, which the server's model list contains."""
    for entry in client.models():
        if entry.name == name and entry.reason and entry.reason not in error.message:
            error.message = f"{error.message} ({state_text(entry)}: {entry.reason})"


def _index(client: Client) -> list[ModelIndex]:
    """Returns the server's model list; empty if the key does not permit listing all models."""
    try:
        return client.models()
    except PermissionDenied:
        return []


def _optional(model: Model) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the model's configuration and counters; both are empty unless the server provides both."""
    try:
        return model.config(explained=True), model.statistics()
    except BacklineError:
        return {}, []


def _document(metadata: ModelMetadata) -> dict[str, Any]:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "datatype": spec.datatype.name, "shape": list(spec.shape)}
            | ({"optional": True} if spec.optional else {})
            for spec in specs
        ]

    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": tensors(metadata.inputs),
        "outputs": tensors(metadata.outputs),
    }


def _show(
    metadata: ModelMetadata,
    config: dict[str, Any],
    statistics: list[dict[str, Any]],
    entries: Sequence[ModelIndex],
) -> None:
    groups = config.get("instance_group") or []
    facts = [
        ("model", metadata.name),
        ("versions", ", ".join(metadata.versions)),
        ("platform", metadata.platform or config.get("backend", "")),
        ("largest batch", str(config.get("max_batch_size") or "no batching")),
    ]
    if groups:  # an ensemble has no instance groups
        facts.append(("instances", str(sum(map(_instances, groups)))))
        facts.append(
            ("device", ", ".join(dict.fromkeys(name for group in groups for name in _devices(group))) or "?")
        )
    chosen = config.get("parameters") or {}
    shown = (("lane", "lane"), ("cores", "cpus"), ("scheduling", "scheduling"), ("because", "placement"))
    for label, key in ((label, f"backline.{name}") for label, name in shown):
        if key in chosen:
            facts.append((label, chosen[key]["string_value"]))
    for label, value in facts:
        print(f"{label:14} {printable(value)}")
    print()
    tensors = [("optional input" if spec.optional else "input", spec) for spec in metadata.inputs]
    tensors += [("output", spec) for spec in metadata.outputs]
    rows = [(kind, spec.name, spec.datatype.name, str(list(spec.shape))) for kind, spec in tensors]
    print_table(("tensor", "name", "datatype", "shape"), rows)
    states = [
        (
            entry.version,
            state_text(entry),
            labels_text(entry, entries),
            memory_text(entry),
            reason_text(entry),
        )
        for entry in entries
    ]
    if states:
        print()
        print_table(("version", "state", "labels", "memory", "reason"), states, right=("memory",))
    ran = [entry for entry in statistics if int(entry.get("inference_count", 0))]
    if ran:
        print()
        columns = ("version", "inferences", "executions", "failed", "queue us", "compute us", "request us")
        print_table(columns, [_counters(entry) for entry in ran], right=columns[1:])
    calls = [row for entry in statistics for row in _calls(entry)]
    if calls:
        print()
        print_table(("version", "calls", *_CALL_COUNTS), calls, right=_CALL_COUNTS)


def _instances(group: dict[str, Any]) -> int:
    return int(group.get("count", 1)) * max(1, len(group.get("gpus", ()))) * (not group.get("passive"))


def _devices(group: dict[str, Any]) -> list[str]:
    """Returns the devices on which the server placed an instance group."""
    if group.get("passive"):
        return []
    if group.get("gpus"):
        return [f"GPU {index}" for index in group["gpus"]]
    return [{"KIND_CPU": "CPU", "KIND_MODEL": "its own"}.get(group.get("kind", ""), "?")]


def _calls(entry: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row for each model that a version calls, such as the steps of a pipeline."""
    rows: list[tuple[str, ...]] = []
    for called, counts in entry.get("call_stats", {}).items():
        succeeded = int(counts["success"]["count"])
        mean = f"{int(counts['success']['ns']) / succeeded / 1000:.1f}" if succeeded else "-"
        rows.append(
            (
                str(entry["version"]),
                called,
                str(succeeded),
                str(counts["fail"]["count"]),
                str(counts["cancel"]["count"]),
                mean,
            )
        )
    return rows


def _counters(entry: dict[str, Any]) -> tuple[str, ...]:
    times = entry["inference_stats"]

    def mean(*names: str) -> str:
        count = int(times[names[0]]["count"])
        return f"{sum(int(times[name]['ns']) for name in names) / count / 1000:.1f}" if count else "-"

    return (
        str(entry["version"]),
        str(entry["inference_count"]),
        str(entry["execution_count"]),
        str(times["fail"]["count"]),
        mean("queue"),
        mean("compute_infer", "compute_input", "compute_output"),
        mean("success"),
    )
