"""`backline watch`: shows each request to a server when it ends, and where its time was spent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import click

from backline.cli.command import run
from backline.cli.connection import connection_options
from backline.cli.numbers import WholeNumber
from backline.cli.options import json_option
from backline_client.client.aio import AsyncClient
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable

#: If no event and no keep-alive arrives for this many seconds, the connection is considered broken.
_SILENCE = 60.0
_EPILOG = """\b
Examples:
  backline watch
  backline watch --model tagger
  backline watch --failed --url http://server:8000
  backline watch --count 10 --json

Requests are traced only while somebody watches, and at most twenty per second.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--model",
    default="",
    metavar="NAME",
    help="Only requests to this model, or to models that call it.",
)
@click.option("--failed", is_flag=True, help="Only requests that failed.")
@click.option("--count", type=WholeNumber(0), default=0, help="Stop after this many requests; 0: never stop.")
@json_option("Print each request as one line of JSON.")
@connection_options
def command(url: str, options: ClientOptions, model: str, failed: bool, count: int, as_json: bool) -> None:
    """Show requests as they end, with the time that each spent in queues and models."""
    run(_watch(url, options, model, failed=failed, count=count, as_json=as_json))


async def _watch(
    url: str, options: ClientOptions, model: str, *, failed: bool, count: int, as_json: bool
) -> None:
    async with AsyncClient(url, options) as client:
        transport = await client.transport()
        if not isinstance(transport, HttpTransport):
            raise InvalidArgument(
                f"requests can only be watched over HTTP: use http://HOST:PORT instead of {url}"
            )
        shown = 0
        async with aclosing(transport.follow(b"/v2/traces", _SILENCE)) as traces:
            async for trace in traces:
                text = transport.read(
                    "a trace", partial(_shown, trace, model, failed=failed, as_json=as_json)
                )
                if not text:
                    continue
                click.secho(text, fg="red" if not as_json and trace["error"] else None)
                shown += 1
                if shown == count:
                    return


def _shown(trace: Mapping[str, Any], model: str, *, failed: bool, as_json: bool) -> str:
    """Returns the text to show for a trace; "" if the options exclude the trace."""
    if (model and not _concerns(trace, model)) or (failed and not trace["error"]):
        return ""
    return json.dumps(trace) if as_json else line(trace)


def _concerns(trace: Mapping[str, Any], model: str) -> bool:
    return model in (trace["model"], *(one["model"] for one in trace["requests"]))


def line(trace: Mapping[str, Any]) -> str:
    """Formats the trace of a request as one line: the time, model, protocol, duration and its parts."""
    when = time.strftime("%H:%M:%S", time.localtime(trace["time"]))
    requests = trace["requests"]
    version = f" {requests[0]['version']}" if requests and requests[0]["version"] else ""
    text = f"{when}  {trace['model'] or '-'}{version}  {trace['protocol']}  {_milliseconds(trace['took'])}"
    parts = []
    if requests and requests[0]["runs"]:
        first = requests[0]
        ran = first["runs"][0]
        parts.append(f"queue {_milliseconds(ran['started'] - first['began'])}")
        parts.append(f"model {_milliseconds(sum(one['ran'] - one['gathered'] for one in first['runs']))}")
        if ran["batch_size"] > 1:
            parts.append(f"in a batch of {ran['batch_size']}")
    parts += [f"{one['model']} {_milliseconds(one['ended'] - one['began'])}" for one in requests[1:]]
    if requests and requests[0]["responses"] > 1:
        parts.append(f"{requests[0]['responses']} responses")
    text += f"  ({', '.join(parts)})" if parts else ""
    return printable(f"{text}  {trace['error']}" if trace["error"] else text)


def _milliseconds(us: int) -> str:
    return f"{us / 1000:.2f} ms"
