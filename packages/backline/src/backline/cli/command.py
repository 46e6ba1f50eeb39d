"""Provides groups of commands, and the event loop that commands run on."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from backline_client.values.spelling import nearest

T = TypeVar("T")


class CommandGroup(click.Group):
    """A group that lists its commands in the order in which they were added. If a name is misspelt, the error
    suggests the nearest one.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def known_commands(self) -> list[str]:
        """Returns the names to suggest instead of a name that is not a command."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            # Click itself would truncate the help texts.
            formatter.write_dl(
                [(name, each.get_short_help_str(limit=200)) for name, each in self.commands.items()]
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.known_commands()
            near = nearest(name, known, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"The commands are {', '.join(known)}."
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to completion, on uvloop if uvloop is installed.

    Where an event loop is running already, as in a notebook, the coroutine runs on a thread of its own.
    """
    import asyncio  # imported here, because `backline --help` needs no event loop

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: run(main)).result()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
