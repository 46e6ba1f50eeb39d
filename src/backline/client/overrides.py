"""What a load brings along instead of the repository's files, as a caller of the client gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backline.engine.control import Overrides
from backline.engine.errors import InvalidArgument


def to_overrides(
    config: str | Mapping[str, Any] | None, files: Mapping[str, bytes | Path] | None
) -> Overrides | None:
    """`config` is a mapping or its JSON; `files` are contents, or paths of local files, by path below the model's folder.

    The paths may begin with "file:", as in Triton's clients. Raises InvalidArgument.
    """
    if config is None:
        if files:
            raise InvalidArgument(
                "files of a model need their configuration too: pass config={...}, {} where the files say it all"
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
            f"the content of '{path}' is a {type(content).__name__}, expected bytes, or a pathlib.Path of a local file"
        )
    return bytes(content)
