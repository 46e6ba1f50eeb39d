"""Links and pictures have targets, and the index lists every decision."""

from __future__ import annotations

import re

import pytest

from docs.pages import PAGES, ROOT, prose, read

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def links() -> list[tuple[str, str]]:
    return [
        (page, link)
        for page in PAGES
        for link in _LINK.findall(prose(page))
        if not link.startswith(("http:", "https:"))
    ]


def _anchors(page: str) -> set[str]:
    """The anchors that GitHub generates from headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), links())
def test_every_link_has_a_target(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page

    assert target.exists()
    if anchor:
        assert anchor in _anchors(str(target.resolve().relative_to(ROOT)))


def test_the_index_of_decisions_is_complete() -> None:
    listed = set(_LINK.findall(read("docs/decisions/README.md")))

    assert listed == {path.name for path in (ROOT / "docs" / "decisions").glob("*.md")} - {"README.md"}
