"""The interface through which the client lists and changes a server's models, over any protocol."""

from __future__ import annotations

import getpass
import json
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from backline_client.client.records import ModelIndex
from backline_client.values.control import Attempt, Change, LabelMove, Overrides, Page
from backline_client.values.errors import InvalidArgument

#: The header field (over gRPC, the metadata key) that carries the user's name for the server's audit log.
USER_HEADER = "x-backline-user"


class ModelControl(ABC):
    """Lists and changes the models of one server. Every method may raise a BacklineError.

    `timeout` is in seconds; a change that takes longer raises DeadlineExceeded, but continues on the server.
    """

    @abstractmethod
    async def models(self, timeout: float) -> list[ModelIndex]:
        """Returns all versions of all models, with everything the server reports about them."""

    @abstractmethod
    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None: ...

    @abstractmethod
    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None: ...

    @abstractmethod
    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        """Returns the labels of a model, each with the version that it points to."""

    @abstractmethod
    async def move_label(self, move: LabelMove, timeout: float) -> Change: ...

    @abstractmethod
    async def history(self, model: str, limit: int, cursor: str, timeout: float) -> Page[Change]: ...

    @abstractmethod
    async def audit(
        self, limit: int, after: float, cursor: str, timeout: float
    ) -> Page[Change | Attempt]: ...

    @abstractmethod
    async def refresh(self, timeout: float) -> None: ...


@cache
def user_name() -> str:
    """Returns user@host in ASCII.

    A user without a name, as in many containers, appears as "uid" followed by the user id: "uid1000".
    """
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return "".join(
        character if "!" <= character <= "~" else "_" for character in f"{user}@{socket.gethostname()}"
    )


def to_overrides(
    config: str | Mapping[str, Any] | None, files: Mapping[str, bytes | Path] | None
) -> Overrides | None:
    """Makes Overrides from `config`, a mapping or its JSON, and `files`, which maps paths in the model to
    contents.

    The contents of a file are bytes or the path of a local file. The paths in the model may start with
    "file:", as in Triton's clients. Raises InvalidArgument for files without a configuration, and for
    contents that are of another type or cannot be read.
    """
    if config is None:
        if files:
            raise InvalidArgument(
                "files need a configuration too: pass config={...}, or config={} to configure nothing"
            )
        return None
    text = config if isinstance(config, str) else json.dumps(dict(config))
    return Overrides(
        text, {path.removeprefix("file:"): _content(path, content) for path, content in (files or {}).items()}
    )


def _content(path: str, content: bytes | Path) -> bytes:
    if isinstance(content, Path):
        try:
            return content.read_bytes()
        except OSError as error:
            raise InvalidArgument(
                f"cannot read '{content}' for '{path}': {error.strerror or error}"
            ) from None
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise InvalidArgument(
            f"the content of '{path}' is a {type(content).__name__}, expected bytes, or a pathlib.Path of a"
            " local file"
        )
    return bytes(content)
