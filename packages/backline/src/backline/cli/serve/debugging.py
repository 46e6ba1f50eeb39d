"""`backline serve --debug`: adapts the settings of a server to debugging one of its models."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.engine.model import ModelState
from backline.server import ServerOptions
from backline_client.values.errors import InvalidArgument, NotFound
from backline_client.values.spelling import nearest

#: Seconds between scans of the models' files, if the operating system does not report changes.
_LOOK = 1.0
#: Seconds to wait for the requests to a replaced version. In effect, the server waits forever, because a
#: request may have stopped at a breakpoint.
_ANY_TIME = 1e8
#: Seconds for which a stopping server waits for requests in flight, and the maximum time in seconds for the
#: whole stop.
_MOMENT = 0.5
STOPPED_WITHIN = 2.0


def debugged_options(options: ServerOptions, model: str) -> ServerOptions:
    """Returns `options`, changed for debugging a model. `model` is a name, or a path if there is no
    repository.

    Raises UsageError if the options contradict debugging.
    """
    lifecycle = options.lifecycle
    if lifecycle.mode == "explicit":
        raise click.UsageError(
            "--debug reloads models when their files change: leave out --model-control-mode explicit"
        )
    if not options.repositories:
        path = Path(os.path.abspath(model))
        options = replace(options, repositories=(str(path),))
        model = options.model_name or (path.stem if path.is_file() else path.name)
    lifecycle = replace(
        lifecycle,
        mode="poll",
        poll_seconds=min(lifecycle.poll_seconds, _LOOK),
        drain_seconds=_ANY_TIME,
        debugged_model=model,
    )
    return replace(options, lifecycle=lifecycle, limits=replace(options.limits, drain_timeout=_MOMENT))


def check_debugged(engine: Engine, name: str) -> None:
    """Raises BacklineError if there is no model `name`, or if the model cannot be debugged.

    Accepts a model that failed to load, because editing the model's files reloads it.
    """
    models = [model for model in engine.models() if model.name == name]
    if not models:
        near = nearest(name, engine.names(), 1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"the repositories have {', '.join(engine.names()) or 'none'}"
        )
        raise NotFound(f"--debug {name}: there is no model '{name}'; {hint}")
    for model in models:
        if (
            model.state is ModelState.READY
            and model.placement is not None
            and model.placement.lane != "debug"
        ):
            what = model.backend or model.platform
            raise InvalidArgument(
                f"--debug {name}: only Python models can be debugged, and the backend of '{name}' is {what}"
            )


def banner(name: str) -> str:
    """Returns the text that explains debugging, to be printed when the server is ready."""
    text = (
        f"Debugging {name}: it runs in this process, breakpoint() stops in this terminal, nothing times out,"
        " and editing its files reloads it."
    )
    if not sys.stdin.isatty():
        text += " Standard input is not a terminal: pdb cannot prompt here; attach another debugger."
    return text


@contextlib.contextmanager
def kept_terminal() -> Iterator[None]:
    """Restores the settings of the terminal after a `with` block, because a debugger that waits for input
    changes these settings.
    """
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
