"""What anybody may ask of a server's log: how it is set, and that it be changed. An engine in another program has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

LogValue: TypeAlias = bool | int | str


class LogControl(Protocol):
    """The settings of Triton's logging extension: log_file, log_info, log_warning, log_error, log_verbose_level, log_format."""

    def settings(self) -> Mapping[str, LogValue]:
        """All settings, in this order."""

    def update(self, changes: Mapping[str, object]) -> None:
        """Sets some, all or none of them.

        Raises InvalidArgument for an unknown setting and for a value that it cannot have, Unsupported for log_file.
        """
