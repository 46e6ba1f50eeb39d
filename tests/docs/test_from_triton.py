"""docs/from-triton.md against the table of Triton's options."""

from __future__ import annotations

from backline.cli.tritonserver.options import OPTIONS
from docs.pages import code, read, table

PAGE = "docs/from-triton.md"
OUTCOMES = {"taken": "supported", "no effect": "no effect", "missing": "warning"}


def test_every_option_of_tritonserver_is_listed_with_what_becomes_of_it() -> None:
    listed = {
        code(row["option of tritonserver"])[0]: (row["outcome"], row["effect in Backline"])
        for row in table(PAGE, "option of tritonserver")
    }

    assert listed == {f"--{one.name}": (OUTCOMES[one.outcome], one.becomes) for one in OPTIONS}


def test_the_log_lines_on_the_page_are_in_tritons_form() -> None:
    page = read(PAGE)

    assert '"Started HTTPService at 0.0.0.0:8000"' in page
    assert "\"successfully loaded 'add1' version 1\"" in page
