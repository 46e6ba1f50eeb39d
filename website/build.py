"""Builds the documentation site: `make site`, which runs `python website/build.py`.

The pages are those of the repository, at their paths, so that their links work in both places. The script
stages them in build/site-pages, adds the API reference, builds the site into build/site with warnings as
errors, checks that no page loads anything from another host, and writes llms.txt and llms-full.txt, which
present the documentation to language models (https://llmstxt.org).
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
STAGED = ROOT / "build" / "site-pages"
SITE = ROOT / "build" / "site"
#: The chapters of the site and their pages. Decisions are added to the last one.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "Start": (
        "README.md",
        "docs/installation.md",
        "docs/tutorial.md",
        "docs/music-service.md",
        "examples/README.md",
        "docs/glossary.md",
    ),
    "Moving to Backline": (
        "docs/from-triton.md",
        "docs/moving-from/fastapi.md",
        "docs/moving-from/torchserve.md",
        "docs/moving-from/tensorflow-serving.md",
        "docs/moving-from/bentoml.md",
        "docs/moving-from/sagemaker.md",
        "docs/moving-from/openai.md",
    ),
    "Models": (
        "docs/repositories.md",
        "docs/backends.md",
        "docs/tables.md",
        "docs/configuration.md",
        "docs/shapes.md",
        "docs/tuning.md",
    ),
    "Python models": (
        "docs/python-models.md",
        "docs/pipelines.md",
        "docs/ensembles.md",
        "docs/triton-python-backend.md",
        "docs/torchserve.md",
    ),
    "Clients": (
        "docs/client.md",
        "docs/embedding.md",
        "docs/protocol.md",
        "docs/jobs.md",
        "docs/compatibility.md",
        "docs/conformance.md",
        "docs/differences-from-triton.md",
    ),
    "Operations": (
        "docs/operations.md",
        "docs/upgrading.md",
        "docs/doctor.md",
        "docs/security.md",
        "docs/tracing.md",
        "SECURITY.md",
    ),
    "Deployment": (
        "docs/deploy/container.md",
        "docs/deploy/kubernetes.md",
        "docs/deploy/fleet.md",
        "docs/deploy/ray.md",
        "docs/deploy/serverless.md",
    ),
    "Reference": ("reference/client.md", "reference/embedding.md", "reference/model.md"),
    "Measurements": ("benchmarks/README.md", "docs/benchmarks/overload.md"),
    "Plug-ins": (
        "docs/plugins.md",
        "docs/write-a-backend.md",
        "docs/write-a-dialect.md",
        "docs/write-a-repository-scheme.md",
        "docs/write-a-command.md",
    ),
    "Inside": ("ARCHITECTURE.md", "CONTRIBUTING.md", "RELEASING.md", "CHANGELOG.md"),
}
#: Files that pages link to and that are not pages.
FILES = ("LICENSE", "docs/images", "docs/benchmarks")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"[^>]*>""")
_CANONICAL = re.compile(r"""rel="(?:canonical|alternate|next|prev|edit)\"""")


def pages() -> list[str]:
    """All pages, in the order of the navigation."""
    listed = [page for chapter in CHAPTERS.values() for page in chapter]
    decisions = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "decisions").glob("*.md"))
    further = sorted(
        str(path.relative_to(ROOT))
        for folder in ("docs", "docs/deploy", "docs/moving-from")
        for path in (ROOT / folder).glob("*.md")
    )
    # A page that no chapter names yet is still published.
    return list(dict.fromkeys([*listed, *further, *decisions]))


def navigation() -> list[dict[str, Any]]:
    """The navigation in MkDocs' form."""
    chapters: list[dict[str, Any]] = [{name: list(chapter)} for name, chapter in CHAPTERS.items()]
    named = {page for chapter in CHAPTERS.values() for page in chapter}
    rest = [page for page in pages() if page not in named]
    decisions = [page for page in rest if page.startswith("docs/decisions/")]
    decisions.sort(key=lambda page: not page.endswith("README.md"))
    chapters.append({"Decisions": decisions})
    if further := [page for page in rest if page not in decisions]:
        chapters.insert(-3, {"More": further})
    return chapters


def source(page: str) -> Path:
    return HERE / page if page.startswith("reference/") else ROOT / page


def stage() -> None:
    """Copies the pages and the files that they show."""
    shutil.rmtree(STAGED, ignore_errors=True)
    for page in pages():
        (STAGED / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source(page), STAGED / page)
    for name in FILES:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, STAGED / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(place, STAGED / name)
    shutil.copyfile(HERE / "site.css", STAGED / "site.css")


def slug(text: str, separator: str) -> str:
    """The anchor that GitHub makes of a heading, so that links work in both places."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", separator)


def build() -> None:
    """Builds the site. Raises SystemExit if there is a warning, such as a link without a target."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    config = load_config(
        str(HERE / "mkdocs.yml"), docs_dir=str(STAGED), site_dir=str(SITE), nav=navigation(), strict=True
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    config.mdx_configs["toc"]["slugify"] = slug
    config.plugins.run_event("startup", command="build", dirty=False)
    try:
        build_site(config)
    except Abort as error:
        raise SystemExit(str(error)) from None
    finally:
        config.plugins.run_event("shutdown")


def loaded_elsewhere() -> Iterator[str]:
    """What pages load from other hosts, which the site must not."""
    for page in sorted(SITE.rglob("*.html")):
        for found in _LOADED.findall(page.read_text("utf-8")):
            if not _CANONICAL.search(found):
                yield f"{page.relative_to(SITE)}: {found}"


def title(page: str) -> str:
    found = _TITLE.search(source(page).read_text("utf-8"))
    return found[1].replace("`", "") if found else page


def summary(page: str) -> str:
    """The first paragraph of a page, in one line."""
    for paragraph in re.split(r"\n\s*\n", source(page).read_text("utf-8")):
        text = " ".join(paragraph.split())
        if text and not text.startswith(("#", "|", "!", "<", ">", "```", ":::", "    ")):
            return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return ""


def write_llms() -> None:
    """Writes llms.txt, a list of the pages with summaries, and llms-full.txt, all pages but decisions."""
    lines = ["# Backline", "", f"> {summary('README.md')}", ""]
    for name, chapter in CHAPTERS.items():
        lines += [f"## {name}", ""]
        lines += [f"- [{title(page)}]({page}): {summary(page)}" for page in chapter]
        lines.append("")
    (SITE / "llms.txt").write_text("\n".join(lines))
    whole = [
        f"<!-- {page} -->\n\n{source(page).read_text('utf-8').strip()}\n"
        for page in pages()
        if not page.startswith(("docs/decisions/", "reference/"))
    ]
    (SITE / "llms-full.txt").write_text("\n".join(whole))
    # llms.txt links to the pages' own text.
    for page in pages():
        (SITE / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source(page), SITE / page)


def main() -> None:
    shutil.rmtree(SITE, ignore_errors=True)
    stage()
    build()
    if found := list(loaded_elsewhere()):
        sys.exit("\n".join(["These pages load files from another host:", *found]))
    write_llms()
    size = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file())
    print(f"{len(pages())} pages, {size >> 20} MiB, in {SITE}")


if __name__ == "__main__":
    main()
