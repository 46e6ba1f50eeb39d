"""Prints the progress of loads, and then the models, the server's addresses and sample commands."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from backline.access.keys import environment_has_keys
from backline.cli.serve.debugging import banner
from backline.cli.table import print_table
from backline.engine.device import name_devices
from backline.engine.engine import Engine
from backline.engine.model import LoadProgress, Model, ModelState
from backline.engine.numbers import format_bytes
from backline.lifecycle.journal import LoadEvent
from backline.server import Server, ServerOptions
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import element_count

if TYPE_CHECKING:
    from backline.schedule.cache.config import CacheOptions


def exposure(options: ServerOptions) -> str:
    """Returns a warning if other machines can use the server without a key or a client certificate, or if
    keys are sent unencrypted; else "".

    A Unix socket needs no warning, because the permissions of its folder protect the socket.
    """
    addresses = options.reachable
    if not addresses or options.only_certified:
        return ""
    encrypts = options.tls is not None and not options.tls_grpc_only
    if _keyed(options):
        return "" if encrypts else "keys and data are sent unencrypted: use --ssl-certificate on all ports"
    may = "use its models, but not change anything"
    if options.insecure_open:
        may = {
            "none": "use its models and change settings",
            "poll": "use its models, move their labels and change settings",
            "explicit": "use, load and unload its models and change settings",
        }[options.lifecycle.mode]
    encrypted = "" if encrypts else "; nothing is encrypted"
    if options.tls_grpc_only:
        encrypted = "; only gRPC is encrypted"
    return (
        f"anyone who can reach this server's address, {', '.join(addresses)}, may {may}{encrypted}."
        " Require keys (--auth, see 'backline keys create --help') or client certificates"
        " (--ssl-certificate, --ssl-key, --ssl-client-ca), or listen on 127.0.0.1 or a --unix-socket"
    )


def _keyed(options: ServerOptions) -> bool:
    return options.auth is not None or environment_has_keys()


log = logging.getLogger("backline.serve")

#: Seconds after which a progress bar appears on a terminal. A start that takes less time does not import
#: rich.
PROGRESS_AFTER = 0.7
#: Seconds between updates of the progress.
PROGRESS_EVERY = 0.2
#: Seconds for which lines are collected, so that a start with thousands of models prints them together.
COLLECTED = 0.05
#: The text next to the bar if no load reports its phase.
_LOADING = "loading models"
#: The maximum number of loads whose phase is shown next to the bar.
MAX_PHASES = 2
#: Seconds after which a line reports that a load is still running, because the load may hang.
LONG_LOAD = 30.0
#: The maximum number of elements in a sample request that is printed as JSON.
MAX_PRINTED = 32


class LoadReport:
    """A report with a line for each model that has loaded or failed, for each environment being built, and
    for each load that takes more than LONG_LOAD seconds.

    On a terminal, a bar shows the phases of long loads.
    """

    def __init__(self, engine: Engine, *, bar: bool = True, failures: bool = True) -> None:
        """Creates a report. With `bar=False`, it consists of lines only, so that a debugger can use the
        terminal.

        With `failures=False`, the report omits failed loads, because a log on the same terminal shows them.
        """
        self._engine = engine
        self._failures = failures
        self._built: set[tuple[str, str]] = set()
        self._long: set[tuple[str, str]] = set()
        self._bar: Any = None
        self._task: Any = None
        self._done = 0
        self._total: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Lines to print, and the timer after which they are printed.
        self._lines: list[str] = []
        self._printing: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._next_update = self._loop.call_later(PROGRESS_EVERY, self._show_loads)
        if bar and sys.stdout.isatty():
            self._timer = self._loop.call_later(PROGRESS_AFTER, self._open_bar)

    def on_event(self, event: LoadEvent) -> None:
        self._done, self._total = event.done, event.total
        if event.state is ModelState.LOADING:
            return
        where = f"{event.name} version {event.version}" if event.version else event.name
        if event.state is ModelState.READY:
            state = click.style("loaded", fg="green")
            line = f"{state} {where} in {event.seconds:.2f} s ({event.done}/{event.total})"
            self._say(line)
        elif self._failures:
            state = click.style("FAILED", fg="red", bold=True)
            self._say(f"{state} {where} ({event.done}/{event.total}): {event.reason}")
        if self._bar is not None:
            self._bar.update(self._task, completed=event.done, total=event.total)

    def _say(self, line: str) -> None:
        self._lines.append(line)
        if self._printing is None:
            self._printing = self._loop.call_later(COLLECTED, self._print)

    def _print(self) -> None:
        text, self._lines, self._printing = "\n".join(self._lines), [], None
        if self._bar is None:
            say(text)
        else:
            from rich.text import Text

            self._bar.console.print(Text.from_ansi(text))

    def _show_loads(self) -> None:
        self._next_update = self._loop.call_later(PROGRESS_EVERY, self._show_loads)
        phases = []
        for model in self._engine.models():
            progress = model.progress
            if progress is None:
                continue
            phases.append(f"{model.name} {model.version}: {_phase(progress)}")
            if progress.phase == "environment" and (model.name, model.version) not in self._built:
                self._built.add((model.name, model.version))
                self._say(f"building the environment of {model.name} version {model.version}")
            if monotonic() - progress.began > LONG_LOAD and (model.name, model.version) not in self._long:
                self._long.add((model.name, model.version))
                self._say(
                    f"still loading {model.name} version {model.version} after {LONG_LOAD:g} s:"
                    f" {_phase(progress)}"
                )
        if self._bar is not None:
            self._bar.update(self._task, description="; ".join(phases[:MAX_PHASES]) or _LOADING)

    def _open_bar(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            transient=True,
        )
        self._task = self._bar.add_task(_LOADING, completed=self._done, total=self._total)
        self._bar.start()

    def close(self) -> None:
        """Prints the remaining lines, stops the updates and removes the bar."""
        self._next_update.cancel()
        if self._printing is not None:
            self._printing.cancel()
            self._print()
        if self._timer is not None:
            self._timer.cancel()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _phase(progress: LoadProgress) -> str:
    """Formats the phase of a load and the state of its download, as in "environment, 12 MiB of 90 MiB"."""
    if progress.bytes_done >= progress.bytes_total:
        return progress.phase
    return f"{progress.phase}, {format_bytes(progress.bytes_done)} of {format_bytes(progress.bytes_total)}"


def say(line: str = "") -> None:
    """Prints a line. Removes the colours from the line if stdout is not a terminal, or if NO_COLOR is set."""
    click.echo(line, color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def print_report(server: Server, options: ServerOptions, seconds: float) -> None:
    """Prints the table of models, the addresses, and sample requests for curl and Python."""
    engine = server.engine
    models = list(engine.models())
    rows: list[tuple[str, ...]] = [_row(model, _labels(engine, model)) for model in models]
    known = {model.name for model in models}
    rows += [
        (name, "-", "NOT LOADED", "-", "-", "-", "-", "-", f"load it: backline models load {name}")
        for name in engine.names()
        if name not in known
    ]
    if rows:
        headers: tuple[str, ...] = (
            "model",
            "version",
            "state",
            "labels",
            "lane",
            "device",
            "instances",
            "batch",
        )
        headers += ("scheduling or reason" if any(model.reason for model in models) else "scheduling",)
        # Columns without information are omitted: devices if all models run on the CPU, labels if none exist.
        for name, nothing in (("device", ("CPU", "-")), ("labels", ("", "-"))):
            column = headers.index(name)
            if all(row[column] in nothing for row in rows):
                headers, rows = _without(headers, column), [_without(row, column) for row in rows]
        say()
        print_table(headers, sorted(rows, key=lambda row: row[0]), right=("instances", "batch"))
    else:
        say(
            "\nThe repositories have no models. Add one as <model>/<version>/model.onnx" + _next_step(options)
        )
    say()
    width = max((len(label) for label, _ in server.urls), default=0)
    for label, url in server.urls:
        say(f"{label.ljust(width)}  {click.style(url, bold=True)}")
    exposed = exposure(options)
    if exposed:
        log.warning("%s", exposed)
        say(f"\n{click.style('Warning', fg='yellow', bold=True)}: {exposed}")
    if options.lifecycle.response_cache is not None:
        say(f"\nResponse cache: {_cache_place(options.lifecycle.response_cache)}, {_cached_models(models)}")
    if options.lifecycle.debugged_model:
        say(f"\n{click.style(banner(options.lifecycle.debugged_model), bold=True)}")
    _print_samples(server, options, models)
    waiting = sum(model.on_demand for model in models)
    ready = sum(model.state is ModelState.READY for model in models)
    verdict = click.style("Ready", fg="green", bold=True)
    if ready + waiting < len(models):
        verdict = click.style("Not all models are ready", fg="red", bold=True)
    on_demand = f", {waiting} loaded on demand," if waiting else ""
    say(
        f"\n{verdict}: {ready} of {len(models)} model versions{on_demand} after {seconds:.2f} s. Ctrl-C"
        " stops."
    )
    sys.stdout.flush()


def _cache_place(cache: CacheOptions) -> str:
    from backline.schedule.cache.config import LocalOptions

    if isinstance(cache, LocalOptions):
        return f"{format_bytes(cache.size)} of memory"
    return f"Redis at {cache.host}:{cache.port}"


def _cached_models(models: Sequence[Model]) -> str:
    names = sorted({model.name for model in models if model.config.response_cache})
    return f"for {', '.join(names)}" if names else "but no model has response_cache { enable: true }"


def _next_step(options: ServerOptions) -> str:
    return {
        "none": " and restart.",
        "poll": ": it will be loaded.",
        "explicit": " and load it: backline models load.",
    }[options.lifecycle.mode]


def _labels(engine: Engine, model: Model) -> str:
    return ", ".join(
        sorted(label for label, version in engine.labels(model.name).items() if version == model.version)
    )


def _without(row: tuple[str, ...], column: int) -> tuple[str, ...]:
    return row[:column] + row[column + 1 :]


def _has_failed(model: Model) -> bool:
    return model.state is ModelState.UNAVAILABLE and bool(model.reason) and not model.on_demand


def _row(model: Model, labels: str) -> tuple[str, ...]:
    name, version, state = model.name, model.version, model.state.value
    if model.state is not ModelState.READY:
        return (
            name,
            version,
            state.replace("_", " "),
            labels,
            "-",
            "-",
            "-",
            "-",
            # The log or a line of the report tells at once why a load failed.
            "failed, see its message" if _has_failed(model) else model.reason,
        )
    placement = model.placement
    place = (
        ("-", "-", "-")
        if placement is None
        else (placement.lane, name_devices(placement.places), str(placement.instances))
    )
    return (
        name,
        version,
        state,
        labels,
        *place,
        str(model.max_batch_size or "no"),
        model.reason or model.scheduling,
    )


def _print_samples(server: Server, options: ServerOptions, models: list[Model]) -> None:
    loaded = [
        model
        for model in models
        if model.state is ModelState.READY and model.signature.inputs and model.config.sequence is None
    ]
    url = next((url for label, url in server.urls if label == "HTTP"), "")
    if url and options.console:
        shown = url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
        say(f"\nSee and try the models in a browser: {click.style(f'{shown}/', bold=True)}")
    if not loaded or not url or options.only_certified:
        return
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    certificate = (
        str(options.tls.certificate) if options.tls is not None and not options.tls_grpc_only else None
    )
    model = min(loaded, key=_effort)
    keyed = _keyed(options)
    files = any(spec.media for spec in model.signature.inputs)
    places = " and ".join(["a key for KEY"] * keyed + ["a file for FILE"] * files)
    say(f"\nTry it from another terminal ({model.name}){f', with {places}' if places else ''}:\n")
    say(f"  {curl_line(model, url, certificate, keyed=keyed)}\n")
    say(f"  {python_line(model, url, certificate, keyed=keyed)}")


def _effort(model: Model) -> tuple[bool, bool, bool, bool, int]:
    """Returns a sort key that chooses the model for the sample commands. The model with the lowest key is
    chosen.

    The best choice is a model with fixed shapes whose request is short but not empty, and needs no files.
    """
    shapes = [_shape(model, spec) for spec in model.signature.inputs]
    varies = any(-1 in spec.shape[1 if model.max_batch_size else 0 :] for spec in model.signature.inputs)
    sizes = [element_count(shape) for shape in shapes]
    files = any(spec.media for spec in model.signature.inputs)
    return files, 0 in sizes, varies, not _printable(model), sum(sizes)


def _shape(model: Model, spec: TensorSpec) -> tuple[int, ...]:
    return tuple(1 if dim < 0 else dim for dim in spec.shape)


def _printable(model: Model) -> bool:
    inputs = model.signature.inputs
    # The protocol has no JSON form for 16-bit floats.
    half = any(spec.datatype in (DataType.FP16, DataType.BF16) for spec in inputs)
    return not half and sum(element_count(_shape(model, spec)) for spec in inputs) <= MAX_PRINTED


def curl_line(model: Model, url: str, certificate: str | None = None, *, keyed: bool = False) -> str:
    """Returns a curl command to try the model with. If `keyed`, the command has KEY as a placeholder for the
    key.

    If the model has a single input for pictures or sounds, the command sends FILE. Otherwise the command
    sends JSON if the request is short and has no 16-bit floats, or else zeros in binary form if the only
    input is numeric and of fixed shape. For other models, and for decoupled models whose request is not
    short, the command gets the metadata.
    """
    curl = "curl" if certificate is None else f"curl --cacert {shlex.quote(certificate)}"
    if keyed:
        curl += " -H 'Authorization: Bearer KEY'"
    if len(model.signature.inputs) == 1 and model.signature.inputs[0].media:
        file = "-H 'Content-Type: application/octet-stream' --data-binary @FILE"
        return f"{curl} {shlex.quote(f'{url}/models/{model.name}')} {file}"
    target = f"{url}/v2/models/{model.name}"
    if _printable(model):
        inputs = ", ".join(_json_input(model, spec) for spec in model.signature.inputs)
        body = '{"inputs": [' + inputs + "]}"
        route = "/infer_stream" if model.decoupled else "/infer"
        return f"{curl} {shlex.quote(target + route)} -d {shlex.quote(body)}"
    spec = model.signature.inputs[0]
    varying = spec.shape[1 if model.max_batch_size else 0 :].count(-1)
    if (
        len(model.signature.inputs) == 1
        and spec.datatype is not DataType.BYTES
        and not varying
        and not model.decoupled
    ):
        size = element_count(_shape(model, spec)) * spec.datatype.itemsize
        return (
            f"head -c {size} /dev/zero | {curl} {shlex.quote(target + '/infer')}"
            " -H 'Inference-Header-Content-Length: 0' --data-binary @- -o answer.bin -D -"
        )
    return f"{curl} {shlex.quote(target)}"


def _json_input(model: Model, spec: TensorSpec) -> str:
    shape = _shape(model, spec)
    value = {DataType.BYTES: '"text"', DataType.BOOL: "true"}.get(spec.datatype, "1")
    data = ", ".join([value] * element_count(shape))
    head = f'"name": "{spec.name}", "datatype": "{spec.datatype.name}", "shape": {list(shape)}'
    return f'{{{head}, "data": [{data}]}}'


def python_line(model: Model, url: str, certificate: str | None = None, *, keyed: bool = False) -> str:
    """Returns a shell command that runs the model from Python. If `keyed`, the command has KEY as a
    placeholder for the API key.
    """
    inputs = ", ".join(f"{spec.name!r}: {_numpy(model, spec)}" for spec in model.signature.inputs)
    if len(model.signature.inputs) == 1:
        inputs = _numpy(model, model.signature.inputs[0])
        call = f"({inputs})"
    else:
        call = f"({{{inputs}}})"
    ca = "" if certificate is None else f", ca={certificate!r}"
    key = ", api_key='KEY'" if keyed else ""
    model_text = f"backline.connect({url!r}{ca}{key})[{model.name!r}]"
    answer = f"*map(dict, {model_text}.stream{call})" if model.decoupled else f"dict({model_text}{call})"
    code = f"import backline, numpy as np; print({answer})"
    # Double quotes around code that has single quotes are more readable. They are used unless the shell would
    # expand something between them.
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f"{shlex.quote(sys.executable)} -c {quoted}"


def _numpy(model: Model, spec: TensorSpec) -> str:
    shape = _shape(model, spec)
    if spec.media:
        return f"np.full({shape}, open('FILE', 'rb').read(), object)"
    if spec.datatype is DataType.BYTES:
        return f"np.full({shape}, 'text', object)"
    return f"np.ones({shape}, {spec.datatype.dtype.name!r})"
