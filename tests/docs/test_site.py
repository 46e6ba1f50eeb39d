"""The documentation site has all pages; `make site` builds it, and checks its links."""

from __future__ import annotations

from runpy import run_path
from typing import Any

import pytest

from docs.pages import PAGES, ROOT
from docs.test_links import links

BUILD = run_path(str(ROOT / "website" / "build.py"))


def listed(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in listed(part)]


def test_the_navigation_has_every_page_once() -> None:
    found = listed(BUILD["navigation"]())

    assert sorted(found) == sorted(BUILD["pages"]())
    assert set(PAGES) <= set(found)


def test_pages_link_only_to_what_the_site_has() -> None:
    kept = {ROOT / name for name in (*BUILD["pages"](), *BUILD["FILES"])}
    for page, link in links():
        target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
        assert link.startswith("#") or not kept.isdisjoint((target, *target.parents)), f"{page}: {link}"


@pytest.mark.parametrize("page", [page for chapter in BUILD["CHAPTERS"].values() for page in chapter])
def test_every_page_has_a_title_and_a_summary(page: str) -> None:
    assert BUILD["title"](page) != page
    assert len(BUILD["summary"](page)) > 20


def test_anchors_are_those_of_github() -> None:
    assert BUILD["slug"]("`parameters` of ONNX Runtime", "-") == "parameters-of-onnx-runtime"
    assert BUILD["slug"]("Load, prove - serve", "-") == "load-prove---serve"


def test_the_reference_names_objects_that_exist() -> None:
    from importlib import import_module

    names = [
        line.removeprefix("::: ")
        for page in BUILD["CHAPTERS"]["Reference"]
        for line in BUILD["source"](page).read_text().splitlines()
        if line.startswith("::: ")
    ]

    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
