"""docs/doctor.md lists every check of `backline doctor`, in its order."""

from __future__ import annotations

from backline.plugins.tools.doctor.addresses import ADDRESSES
from backline.plugins.tools.doctor.files import FILES
from backline.plugins.tools.doctor.machine import MACHINE
from backline.plugins.tools.doctor.repository import REPOSITORY
from backline.plugins.tools.doctor.running import RUNNING
from backline.plugins.tools.doctor.software import SOFTWARE
from docs.pages import code, table


def test_the_table_lists_every_check() -> None:
    listed = [name for row in table("docs/doctor.md", "check") for name in code(row["check"])]

    assert listed == [*SOFTWARE, *MACHINE, *FILES, *ADDRESSES, *REPOSITORY, *RUNNING]
