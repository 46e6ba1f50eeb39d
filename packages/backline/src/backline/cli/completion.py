"""`backline completion`: prints the script with which a shell completes commands and options."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from backline_client.values.errors import InvalidArgument

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_BACKLINE_COMPLETE"
_EPILOG = """\b
Examples:
  backline completion >> ~/.bashrc
  backline completion zsh >> ~/.zshrc
  backline completion fish > ~/.config/fish/completions/backline.fish"""


@click.command(epilog=_EPILOG)
@click.argument("shell", required=False, type=click.Choice(SHELLS))
def command(shell: str | None) -> None:
    """Print the script that completes commands and options in a shell, by default the user's shell.

    Save it as in the examples, and start a new shell.
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise InvalidArgument(
            f"there is no completion script for this user's shell, '{shell or 'unknown'}'; name one of"
            f" {', '.join(SHELLS)}, as in: backline completion bash"
        )
    from backline.cli.main import command as whole

    print(found(whole, {}, "backline", _VARIABLE).source())
