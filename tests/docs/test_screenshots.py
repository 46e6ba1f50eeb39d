"""The pictures of the console in the documentation: `make screenshots` takes them again.

They show real pages of a real server. The counters of the last two minutes are made up, so that a picture
changes only with the console, and a picture that looks like the one before is left as it is.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from backline_client.client import connect
from support.chromium import Page, chromium
from support.console_models import ROOT, add_transcription, build
from support.server import ServerProcess, serve

pytestmark = [
    pytest.mark.skipif("BACKLINE_SCREENSHOTS" not in os.environ, reason="make screenshots takes pictures"),
    pytest.mark.skipif(not importlib.util.find_spec("basic_pitch"), reason="basic-pitch is not installed"),
    pytest.mark.timeout(240),
]
IMAGES = ROOT / "docs" / "images"
#: The share of pixels that may differ, such as those of measured times, and by how much of 255.
DIFFERENT, LEVELS = 0.01, 40
#: Replaces the stream of counters in the page.
STEADY = Path(__file__).with_name("steady.js").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pictures")
    repository = build(folder / "models")
    add_transcription(repository)
    options = ("--model-control-mode", "explicit", "--load-model", "*")
    with serve(repository, folder / "log", *options, ready=False) as running:
        running.wait_started()
        with connect(running.url) as client:
            for items in (1, 1, 2, 4, 4, 4, 8):
                client["add1"](np.ones((items, 16), np.float32))
        yield running


@pytest.fixture(scope="module")
def page(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile", "--hide-scrollbars") as opened:
        opened.call("Page.addScriptToEvaluateOnNewDocument", source=STEADY)
        opened.size(1280)
        opened.open(f"{server.url}/console")
        opened.wait("document.querySelectorAll('.tile').length === 6")
        yield opened


def take(page: Page, name: str, tmp_path: Path) -> None:
    """Takes a picture of the page, and keeps it unless the one before looks alike."""
    taken, kept = tmp_path / name, IMAGES / name
    page.run("document.activeElement?.blur()")
    page.screenshot(taken)
    image = Image.open(taken).convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
    if kept.exists() and alike(Image.open(kept), image):
        return
    image.save(kept, optimize=True)


def alike(before: Image.Image, now: Image.Image) -> bool:
    if before.size != now.size:
        return False
    difference = ImageChops.difference(before.convert("RGB"), now.convert("RGB")).convert("L")
    changed = sum(difference.histogram()[LEVELS:])
    return changed <= DIFFERENT * before.width * before.height


def test_overview(page: Page, tmp_path: Path) -> None:
    page.run("location.hash = '#/'")
    page.wait("document.querySelector('main table')")
    page.wait("document.querySelector('#link').innerText === 'Live'")
    take(page, "console-overview.png", tmp_path)


def test_try(page: Page, tmp_path: Path) -> None:
    page.run("location.hash = '#/models/basic_pitch/try?example=melody.wav'")
    page.wait("document.querySelector('fieldset audio')")
    page.click("Run")
    page.wait("document.querySelector('svg[data-notes]')")
    take(page, "console-try.png", tmp_path)


def test_configuration(page: Page, tmp_path: Path) -> None:
    page.run("location.hash = '#/models/add1/config'")
    page.wait("document.querySelector('main details')")
    take(page, "console-configuration.png", tmp_path)


def test_phone(page: Page, tmp_path: Path) -> None:
    page.size(390, 844, dark=True)
    page.run("location.hash = '#/models/add1'")
    page.wait("document.querySelectorAll('.tile').length === 3")
    page.wait("document.querySelector('.stack')")
    take(page, "console-phone.png", tmp_path)
