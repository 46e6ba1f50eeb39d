"""`backline serve --debug`: what is different when a person looks at one model."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import click

from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, NotFound
from backline.engine.model import ModelState
from backline.server import ServerOptions

#: Seconds between two looks at the files where the system does not tell of changes.
_LOOK = 1.0
#: Seconds that a replaced version has for a request that stands at a breakpoint, and that such requests and all have when the server ends.
_ANY_TIME = 1e8
_MOMENT = 0.5
STOPPED_WITHIN = 2.0


def debugged_options(options: ServerOptions, model: str) -> ServerOptions:
    """The options with which `model` is debugged: its name, or where no repository is named the path of its folder or file.

    Raises UsageError for options that contradict it.
    """
    lifecycle = options.lifecycle
    if lifecycle.mode == "explicit":
        raise click.UsageError(
            "--debug looks at the files of models itself: leave --model-control-mode explicit out"
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
    """Raises BacklineError where there is no such model, or it cannot be debugged. One that failed may be edited and is loaded again."""
    models = [model for model in engine.models() if model.name == name]
    if not models:
        near = get_close_matches(name, engine.names(), 1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"the repositories hold {', '.join(engine.names()) or 'none'}"
        )
        raise NotFound(f"--debug {name}: there is no model '{name}', {hint}")
    for model in models:
        if (
            model.state is ModelState.READY
            and model.placement is not None
            and model.placement.lane != "debug"
        ):
            what = model.backend or model.platform
            raise InvalidArgument(
                f"--debug {name}: only Python models can be debugged, and '{name}' is one of {what}"
            )


def banner(name: str) -> str:
    """What is printed when the server is ready."""
    text = f"Debugging {name}: it runs in this process, breakpoint() stops here, nothing times out, and edits of its files reload it."
    if not sys.stdin.isatty():
        text += " Standard input is no terminal: pdb cannot ask you, another debugger can."
    return text


@contextlib.contextmanager
def kept_terminal() -> Iterator[None]:
    """Leaves the terminal as it was: a debugger that still waits for input has set it to its needs."""
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
