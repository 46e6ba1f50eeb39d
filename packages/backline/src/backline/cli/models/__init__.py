"""`backline models`: shows and changes the models on a server."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import click
import msgspec

from backline.cli.command import CommandGroup
from backline.cli.connection import connection_options
from backline.cli.models.labels import label_model, promote_version, roll_back, show_history
from backline.cli.models.load import load_model, refresh_models, unload_model
from backline.cli.models.show import list_models, show_model
from backline.cli.numbers import Number, WholeNumber
from backline.cli.options import json_option, version_option
from backline_client.client.aio import AsyncClient
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.values.names import printable

_POLL_SECONDS = 0.25


@click.command(
    "record",
    epilog="\b\nExamples:\n  backline models record add1 --count 8\n"
    "  backline models record add1 --wait 30 --json --url http://server:8000",
)
@click.argument("name")
@click.option(
    "--count",
    type=WholeNumber(1, 1000),
    default=8,
    show_default=True,
    help="The number of requests to record.",
)
@version_option("the one that serves requests without a version")
@click.option(
    "--max-bytes",
    type=WholeNumber(1),
    default=64 << 20,
    show_default=True,
    help="Maximum size of the inputs of all recorded requests together, in bytes.",
)
@click.option(
    "--wait",
    type=Number(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the requests to arrive.",
)
@json_option()
@connection_options
def record_requests(
    url: str,
    options: ClientOptions,
    name: str,
    count: int,
    model_version: str,
    max_bytes: int,
    wait: float,
    as_json: bool,
) -> None:
    """Record the next successful requests to a model, to warm up the model at its next load.

    The server keeps the inputs of live requests in its state folder, in place of the previous recording. On
    Ctrl-C, or if fewer requests arrive in time, the recording keeps the requests that have arrived.
    """
    recording = ServerRecording(url, options, name, model_version)
    state = asyncio.run(recording.run({"count": count, "max_bytes": max_bytes}, wait))
    if as_json:
        print(json.dumps(state))
    else:
        _print(state)
    if state["state"] == "failed":
        raise SystemExit(1)


def _print(state: dict[str, Any]) -> None:
    name = f"{state['model']} version {state['version']}"
    why = f" ({state['reason']})" if state["reason"] else ""
    if state["state"] == "failed":
        print(printable(f"{name}: {state['reason']}"))
    else:
        print(
            printable(
                f"{name}: recorded {state['recorded']} of {state['count']} requests,"
                f" {state['bytes']} bytes of inputs{why}"
            )
        )
        print(printable(f"the next load of the model warms it up with {state['file']}"))


class ServerRecording:
    """The recording of a model's requests on a server, controlled over HTTP."""

    def __init__(self, url: str, options: ClientOptions, name: str, version: str) -> None:
        self._url = url
        self._options = options
        self._path = f"/v2/models/{quote(name, safe='')}"
        self._version = f"/versions/{quote(version, safe='')}" if version else ""

    async def run(self, limits: dict[str, int], wait: float) -> dict[str, Any]:
        """Records until the recording is complete, for at most `wait` seconds. Returns the final state.

        Raises UsageError if the URL is not an HTTP URL.
        """
        async with AsyncClient(self._url, self._options) as client:
            transport = await client.transport()
            if not isinstance(transport, HttpTransport):
                raise click.UsageError(
                    f"recording needs HTTP, but the URL is {self._url}: use --url http://..."
                )
            state = await self._ask(transport, b"POST", self._version, msgspec.json.encode(limits))
            try:
                async with asyncio.timeout(wait):
                    while state["state"] in ("recording", "writing"):
                        await asyncio.sleep(_POLL_SECONDS)
                        state = await self._ask(transport, b"GET")
            except (TimeoutError, asyncio.CancelledError):  # Ctrl-C raises CancelledError
                state = await self._ask(transport, b"DELETE")
            return state

    async def _ask(
        self, transport: HttpTransport, method: bytes, version: str = "", body: bytes = b""
    ) -> dict[str, Any]:
        path = f"{self._path}{version}/record".encode()
        answer: dict[str, Any] = await transport.json(path, self._options.timeout, method=method, body=body)
        return answer


_EPILOG = """\b
Examples:
  backline models list
  backline models show add1
  backline models load add1
  backline models promote add1 4
  backline models rollback add1
  backline models history"""


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Show, load, unload and label the models on a server."""


for subcommand in (
    list_models,
    show_model,
    load_model,
    unload_model,
    label_model,
    promote_version,
    roll_back,
    show_history,
    refresh_models,
    record_requests,
):
    command.add_command(subcommand)
