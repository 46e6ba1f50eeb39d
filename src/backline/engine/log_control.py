"""Reading and changing the settings of a server's log. An engine embedded in another program has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

LogValue: TypeAlias = bool | int | str


class LogControl(Protocol):
    """The settings of Triton's logging extension: log_file, log_info, log_warning, log_error,
    log_verbose_level, log_format.
    """

    def settings(self) -> Mapping[str, LogValue]:
        """All settings, in this order."""

    def update(self, changes: Mapping[str, object]) -> None:
        """Changes some settings, all of them or none.

        Raises InvalidArgument for an unknown setting or an invalid value, Unsupported for log_file.
        """
