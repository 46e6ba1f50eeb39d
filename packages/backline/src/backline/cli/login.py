"""`backline login`: stores the API key of a server for the commands and programs of this user."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from backline.access.browsers import is_loopback
from backline.cli.connection import client_options
from backline_client.client.address import Address
from backline_client.client.credentials import StoredKeys
from backline_client.client.errors import CredentialsRefused, PermissionDenied
from backline_client.client.options import ClientOptions, check_api_key
from backline_client.client.sync import Client
from backline_client.values.errors import BacklineError, InvalidArgument

_EPILOG = """\b
Examples:
  backline login https://models.example.org
  backline login http://localhost:8000 < key.txt
  backline infer add1 --input INPUT0=zeros --url https://models.example.org

A server with keys is started with `backline serve --auth`; `backline keys create` makes a key."""


@click.command("login", epilog=_EPILOG)
@click.argument("url")
@client_options
def command(url: str, options: ClientOptions) -> None:
    """Ask for the API key of the server at URL, check it, and store it.

    The key is stored in a file that only this user may read. Commands and `backline.connect` then send it to
    this server, and to no other, unless another key is passed to them.
    """
    address = server_address(url)
    if not (address.tls or address.unix or is_loopback(address.host)):
        click.secho(
            f"{address.server} is not encrypted: others on the network could read the key; use https:// if"
            " the server supports it",
            err=True,
            fg="yellow",
        )
    key = options.api_key or _ask(address)
    if not key:
        raise InvalidArgument(
            f"no key for {address.server} was given: type it, or write it to standard input"
        )
    check_api_key(key, "the key")
    with Client(url, replace(options, api_key=key)) as client:
        try:
            client.metadata()
        except CredentialsRefused as error:
            raise BacklineError(
                f"{address.server} refuses the key, so it was not stored: {error.message}"
            ) from None
        except PermissionDenied:
            pass  # the server knows the key, although the key does not permit this request
    keys = StoredKeys()
    keys.put(address.server, key)
    print(f"Stored the key for {address.server} in '{keys.path}'")


def server_address(url: str) -> Address:
    """Returns the address of a server. Raises BadParameter for the URL of a repository."""
    address = Address.parse(url)
    if address.protocol == "inproc":
        raise click.BadParameter(f"'{url}' is a repository in this process, which needs no key")
    return address


def _ask(address: Address) -> str:
    """Returns the key that the user types, which is not displayed, or the first line of stdin if stdin is not
    a terminal.
    """
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    asked: str = click.prompt(f"Key of {address.server}", hide_input=True, err=True)
    return asked.strip()
