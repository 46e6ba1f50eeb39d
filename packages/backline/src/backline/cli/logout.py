"""`backline logout`: deletes the stored API key of a server."""

from __future__ import annotations

import click

from backline.cli.login import server_address
from backline_client.client.credentials import StoredKeys
from backline_client.values.errors import NotFound

_EPILOG = """\b
Example:
  backline logout https://models.example.org"""


@click.command("logout", epilog=_EPILOG)
@click.argument("url")
def command(url: str) -> None:
    """Delete the API key that `backline login` has stored for URL.

    The key itself stays valid until `backline keys revoke` removes it on the server's machine.
    """
    server = server_address(url).server
    keys = StoredKeys()
    if not keys.remove(server):
        raise NotFound(f"'{keys.path}' has no key for {server}")
    print(f"Removed the key for {server} from '{keys.path}'")
