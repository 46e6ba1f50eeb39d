"""The API key of a client: set by the program or in the environment, or stored by `backline login`."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import msgspec

from backline_client.client.address import Address
from backline_client.client.errors import CredentialsRefused, PermissionDenied
from backline_client.client.options import ClientOptions, check_api_key
from backline_client.system.file_lock import edited
from backline_client.system.private_file import replacement
from backline_client.system.user_folders import user_config
from backline_client.values.errors import BacklineError, InvalidArgument

#: The environment variable with the key for all servers that a program connects to.
VARIABLE = "BACKLINE_KEY"
#: Header fields with credentials, in lower case. If a program sets such a field, no key is added.
_FIELDS = ("authorization", "x-api-key")


@dataclass(frozen=True, slots=True)
class Credential:
    """The header fields that a client sends with every request, including its API key, if any."""

    fields: Mapping[str, str] = field(repr=False)
    #: Describes where the key comes from, to complete "the client sent the key ...", such as "in
    #: BACKLINE_KEY". Empty if no key is sent.
    source: str

    def explain(self, error: BacklineError, url: str) -> BacklineError:
        """Returns the error with a hint added to its text: which key was sent, or how to send one.

        Errors that have nothing to do with the key are returned unchanged.
        """
        if not isinstance(error, PermissionDenied):
            return error
        if self.source:
            hint = f"the client sent the key {self.source}"
        elif isinstance(error, CredentialsRefused):
            hint = f"the client sent no key: run 'backline login {url}', set {VARIABLE}, or pass api_key"
        else:  # the cause is not the key, but a host name or a proxy
            return error
        explained = type(error)(f"{error.message.rstrip('.')} ({hint})")
        explained.retry_after = error.retry_after
        return explained


def find_credential(
    address: Address, options: ClientOptions, environment: Mapping[str, str] = os.environ
) -> Credential:
    """Returns the credential for a server. The key is the one in `options`, or else the one in the
    environment variable, or else the stored one.

    If the headers in `options` contain a credential, no key is added. Raises InvalidArgument if `options`
    contains both such a header and a key, if the key cannot be sent, or if the key file cannot be used.
    """
    own = [name for name in options.headers if name.lower() in _FIELDS]
    if own:
        if options.api_key is not None:
            raise InvalidArgument(f"api_key was given, and also the header '{own[0]}'; leave one out")
        return Credential(options.headers, f"in the header '{own[0]}'")
    if options.api_key is not None:
        key, source = options.api_key, "that it was given"
    elif key := environment.get(VARIABLE, "").strip():
        source = f"in {VARIABLE}"
        check_api_key(key, VARIABLE)
    elif key := StoredKeys().get(address.server):
        source = "that 'backline login' stored"
    else:
        return Credential(options.headers, "")
    return Credential({**options.headers, "Authorization": f"Bearer {key}"}, source)


class StoredKeys:
    """The user's keys by server (`Address.server`), in a file that only the user may read."""

    def __init__(self) -> None:
        self.path = user_config() / "keys.json"

    def get(self, server: str) -> str:
        """Returns the key for a server, or an empty string.

        Raises InvalidArgument if the file cannot be used.
        """
        return self._read().get(server, "")

    def put(self, server: str, key: str) -> None:
        """Stores a key.

        Raises InvalidArgument if the file cannot be used, OSError if it cannot be written.
        """
        with self._edited():
            self._write({**self._read(), server: key})

    def remove(self, server: str) -> bool:
        """Removes a key. Returns whether there was a key to remove. Raises the same errors as `put`."""
        if server not in self._read():
            return False
        with self._edited():
            keys = self._read()
            keys.pop(server, None)
            self._write(keys)
        return True

    def _edited(self) -> AbstractContextManager[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return edited(self.path)

    def _read(self) -> dict[str, str]:
        try:
            with self.path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077 and os.name == "posix":
                    raise InvalidArgument(
                        f"'{self.path}' holds keys, but other users may read it: chmod 600 '{self.path}'"
                    )
                return msgspec.json.decode(file.read(), type=dict[str, str])
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise InvalidArgument(f"'{self.path}' cannot be read: {error.strerror}") from None
        except msgspec.DecodeError:  # the error's text could contain a key
            raise InvalidArgument(
                f"'{self.path}' is not a valid key file (a JSON object that maps servers to keys): remove it,"
                " and log in again with 'backline login'"
            ) from None

    def _write(self, keys: dict[str, str]) -> None:
        with replacement(self.path) as new:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(keys), indent=2))
