"""A command that consists of others, as `backline models` does."""

from __future__ import annotations

from difflib import get_close_matches

import click


class CommandGroup(click.Group):
    """Commands in the order in which they are added, with a hint for misspelt ones."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Whole sentences, which click would cut.
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=200)) for name, command in self.commands.items()]
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            near = get_close_matches(name, self.commands, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands are {', '.join(self.commands)}."
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)
