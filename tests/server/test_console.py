"""The console in a real browser, on a real server: every page, at two widths, with keys of three scopes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
import time
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import backline
from support import models
from support.chromium import Page, chromium
from support.console_models import EXAMPLE, add_listener, add_transcription, build
from support.server import ServerProcess, serve

pytestmark = pytest.mark.timeout(240)
PAGES = ("", "models", "models/add1", "models/add1/try", "models/add1/versions", "models/add1/config",
         "models/broken", "models/sound/try", "graphs", "traces", "repositories", "audit", "log")  # fmt: skip
SCOPES = {
    "viewer": ["read"],
    "runner": ["read", "infer"],
    "operator": ["read", "infer", "manage"],
    "root": ["read", "infer", "manage", "admin"],
}
#: A key that is limited to one model.
LIMITED = "guest"
#: The seconds of music in one request to basic_pitch.
HEARD = 1.9
#: The frequency of what the browser's microphone hears, in Hz.
TONE = 440
#: Rules of the Web Content Accessibility Guidelines, levels A and AA.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


def key_of(name: str) -> str:
    return f"bk_{name}".ljust(46, "k")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("console")
    repository = build(folder / "models")
    add_listener(repository)
    if importlib.util.find_spec("basic_pitch"):
        add_transcription(repository)
    auth = folder / "auth.toml"
    keys = [
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key_of(name).encode()).hexdigest()}"\n'
        f"scopes = {json.dumps(scopes)}\n"
        for name, scopes in {**SCOPES, LIMITED: SCOPES["runner"]}.items()
    ]
    auth.write_text("\n".join(keys) + 'models = ["add1"]\n')
    options = ("--model-control-mode", "explicit", "--load-model", "*", "--auth", str(auth))
    with serve(repository, folder / "log", *options, ready=False) as running:
        running.wait_started()
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    write_wav(
        folder / "sound.wav", [math.sin(2 * math.pi * TONE * at / 48_000) for at in range(48_000)], 48_000
    )
    microphone = (
        "--use-fake-ui-for-media-stream",  # which permits it
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'sound.wav'}",
    )
    with chromium(folder / "profile", *microphone) as page:
        yield page


def write_wav(file: Path, samples: list[float], rate: int) -> None:
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes(struct.pack(f"<{len(samples)}h", *(round(16_000 * one) for one in samples)))


@pytest.fixture
def page(browser: Page, server: ServerProcess) -> Iterator[Page]:
    browser.events.clear()
    browser.size(1440)
    browser.open(f"{server.url}/console")
    browser.wait("document.querySelector('#who').innerText")
    yield browser
    assert browser.problems() == []
    assert browser.hosts() <= {f"127.0.0.1:{server.http_port}"}
    browser.run("sessionStorage.clear()")
    browser.open("about:blank")


def enter(page: Page, name: str) -> None:
    """Gives a key as a visitor does."""
    page.run("document.querySelector('#who').click()")
    page.type("#key", key_of(name))
    page.click("Use it")
    page.wait(f"document.querySelector('#who').innerText === 'Key: {name}'")


def go(page: Page, path: str) -> None:
    page.run(f"location.hash = '#/{path}'")


def ask(server: ServerProcess, path: str, body: Any = None, name: str = "operator") -> Any:
    data = None if body is None else json.dumps(body).encode()
    fields = {"authorization": f"Bearer {key_of(name)}", "content-type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(server.url + path, data, fields), timeout=30
    ) as answer:
        return json.loads(answer.read() or b"null")


def violations(page: Page) -> list[str]:
    """What in the page breaks a rule of accessibility. Skips the test if axe-core is not installed."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    if not page.run("'axe' in self"):
        page.run(Path(axe.__file__).with_name("axe.min.js").read_text())
    found: list[str] = page.run(
        f"axe.run(document, {{runOnly: {json.dumps(RULES)}}}).then((result) => result.violations.map("
        "(one) => one.id + ': ' + one.nodes.map((node) => node.html.slice(0, 120)).join(' | ')))"
    )
    return found


def test_without_a_key_nothing_is_shown_and_nothing_offered(page: Page) -> None:
    page.wait("document.querySelector('main h1')")
    assert "add1" not in page.text("body")
    assert page.text("#nav") == "Models"


def test_a_wrong_key_is_refused_in_words(page: Page) -> None:
    page.run("document.querySelector('#who').click()")
    page.type("#key", "bk_wrong")
    page.click("Use it")
    page.wait("document.querySelector('dialog .error')?.innerText.includes('unknown')")
    page.click("Cancel")


@pytest.mark.parametrize("name", SCOPES)
def test_a_visitor_is_offered_what_the_key_allows(page: Page, name: str) -> None:
    enter(page, name)
    go(page, "models/add1")
    page.wait("document.querySelectorAll('.tabs a').length")
    assert ("Try it" in page.text(".tabs")) == ("infer" in SCOPES[name])
    go(page, "models/add1/versions")
    page.wait("document.querySelector('main table tbody tr')")
    assert ("Promote" in page.text()) == ("manage" in SCOPES[name])


def test_a_key_for_some_models_opens_them_by_name(page: Page) -> None:
    enter(page, LIMITED)
    page.type("#name", "add1")
    page.click("Open")
    page.click("Try it")
    page.click("Run")
    page.wait("document.querySelector('[data-output=OUTPUT0]')")
    assert "Versions" not in page.text(".tabs")


def test_open_consoles_do_not_keep_a_server_from_stopping(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    with (
        serve(tmp_path / "models", tmp_path / "log", "--exit-timeout-secs", "60") as running,
        contextlib.ExitStack() as opened,
    ):
        for path in ("/v2/activity", "/v2/traces", "/v2/logging/lines"):
            asked = urllib.request.Request(running.url + path, headers={"accept": "text/event-stream"})
            answer = opened.enter_context(urllib.request.urlopen(asked, timeout=30))
            assert answer.readline().startswith((b"data: ", b": "))
        assert running.stop(timeout=30) == 0


def test_the_overview_counts_requests_as_they_come(page: Page, server: ServerProcess) -> None:
    enter(page, "viewer")
    page.wait("document.querySelectorAll('.tile').length === 6")
    for _ in range(20):
        ask(server, "/models/add1", {"INPUT0": [1] * 16})
    page.wait("[...document.querySelectorAll('.tile')][0].querySelector('.value').innerText !== '0 a second'")
    page.wait("/[µm]s median/.test(document.querySelector('main').innerText)")
    assert "2 workers" in page.text()  # those of words and listener


def test_a_failed_load_shows_its_reason(page: Page) -> None:
    enter(page, "viewer")
    go(page, "models")
    page.wait("document.querySelector('main .error')?.innerText.includes('it is not an ONNX model')")
    for path in ("models/broken", "models/broken/try"):
        enter(page, "runner") if path.endswith("try") else None
        go(page, path)
        page.wait("document.querySelector('main .error')?.innerText.includes('it is not an ONNX model')")
        assert "unknown model" not in page.text()


def test_another_clients_request_is_not_shown_before_anything_ran(page: Page, server: ServerProcess) -> None:
    enter(page, "runner")
    go(page, "models/add1/try")
    page.wait("document.querySelector('main').innerText.includes('Nothing has been run yet')")
    key = {"Authorization": f"Bearer {key_of('runner')}"}
    traces = urllib.request.Request(f"{server.url}/v2/traces", headers={**key, "Accept": "text/event-stream"})
    body = json.dumps({"INPUT0": [[0] * 16]}).encode()
    with urllib.request.urlopen(traces, timeout=30) as stream:
        urllib.request.urlopen(
            urllib.request.Request(f"{server.url}/models/add1", body, key), timeout=30
        ).close()
        while b"add1" not in stream.readline():
            pass
    page.run("fetch('/v2/health/live').then((answer) => { document.title = `health ${answer.status}`; })")
    page.wait("document.title === 'health 200'")  # by then, the trace has arrived

    assert "Where the" not in page.text()


def test_numbers_are_run_and_the_answer_is_shown_with_the_call(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/add1/try?inputs=" + json.dumps({"INPUT0": [[0] * 15 + [41]]}).replace(" ", ""))
    page.click("Run")
    page.click("JSON")
    page.wait("document.querySelector('[data-output=OUTPUT0] pre')?.innerText.includes('43')")
    assert "curl" in page.text()
    page.wait("document.querySelector('main').innerText.includes('Where the')")  # its trace has arrived
    link = page.run(
        "[...document.querySelectorAll('a.button')].find((one) => one.innerText.includes('Link')).href"
    )
    assert "inputs=" in link


PICTURE = """
from backline.model import Image


def predict(image: Image["RGB"], share: float) -> str:
    height, width, _ = image.shape
    return f"{width} x {height} at {share}"
"""


def test_a_picture_is_asked_for_and_the_settings_of_an_example_are_filled_in(
    browser: Page, tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "models" / "picture" / "1").mkdir(parents=True)
    (tmp_path / "models" / "picture" / "1" / "model.py").write_text(PICTURE)
    (tmp_path / "models" / "picture" / "examples").mkdir()
    (tmp_path / "models" / "picture" / "examples" / "blue.json").write_text(
        '{"image": {"file": "blue.png"}, "share": 0.25}'
    )
    pillow.new("RGB", (5, 4), "blue").save(tmp_path / "models" / "picture" / "examples" / "blue.png")
    pillow.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    with backline.serve(tmp_path / "models") as server:
        browser.size(1440)
        browser.open(f"{server.url}/#/")
        browser.click("Try it")
        browser.wait("document.querySelector('textarea')?.value === '0.25'")
        browser.upload("input[type=file][accept='image/*']", tmp_path / "red.png")
        browser.click("Run")
        browser.wait("document.querySelector('[data-output=output]')?.innerText.includes('3 x 2 at 0.25')")
        browser.open("about:blank")


def test_an_example_is_filled_in_and_linked_to(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/add1/try")
    page.click("damaged")
    page.wait("document.querySelector('main .error')?.innerText.includes('it is not JSON')")
    page.click("ones")
    page.wait("document.querySelector('textarea').value === JSON.stringify(Array(16).fill(1))")
    page.click("Run")
    page.wait("document.querySelector('[data-output=OUTPUT0]')")
    link = page.run(
        "[...document.querySelectorAll('a.button')].find((one) => one.innerText.includes('Link')).hash"
    )
    assert link == "#/models/add1/try?example=ones"
    assert "recorded" not in page.text(".examples")  # it holds what clients sent


def test_a_file_among_the_examples_is_given_as_a_file(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/words/try?example=letters.txt")
    page.wait("document.querySelector('input[type=file]')?.files[0]?.name === 'letters.txt'")
    page.click("Run")
    page.wait("document.querySelector('main').innerText.includes('4 responses, done')")


def test_recorded_requests_are_examples_for_whoever_may_see_them(page: Page, server: ServerProcess) -> None:
    ask(server, "/v2/models/add10/record", {"count": 1}, "root")
    ask(server, "/models/add10", {"INPUT0": [7] * 16})
    enter(page, "root")
    deadline = time.monotonic() + 30
    while not ask(server, "/v2/models/add10/recorded", name="root")["examples"]:
        assert time.monotonic() < deadline
    go(page, "models/add10/try")
    page.click("recorded 1")
    page.wait("document.querySelector('textarea').value === JSON.stringify([Array(16).fill(7)])")


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("models/add1/try?example=ones",
         {"curl": "3", "Python": "3.", "requests": "3", "tritonclient": "3."}),
        ("models/words/try?inputs=%7B%22text%22%3A%22a%20b%22%7D",
         {"curl": '{"output":["B"]}', "Python": "B", "requests": "B", "tritonclient": "B"}),
        ("models/words/try?example=letters.txt",
         {"curl": '{"output":["D"]}', "Python": "D", "requests": "D"}),
    ],
    ids=["numbers", "stream", "file"],
)  # fmt: skip
def test_the_same_call_works_in_every_language(
    page: Page, path: str, printed: dict[str, str], tmp_path: Path
) -> None:
    enter(page, "runner")
    go(page, path)
    page.wait("document.querySelector('.examples button')")
    if "letters.txt" in path:
        page.wait("document.querySelector('input[type=file]')?.files[0]?.name === 'letters.txt'")
    page.click("Run")
    page.wait("document.querySelector('section:not([hidden]) .seg + pre')")
    (tmp_path / "FILE").write_text("a b c d")
    key = key_of("runner")
    programs = [f"key = {key!r}"]
    for language, expected in printed.items():
        page.click(language)
        text = page.text("section:not([hidden]) .seg + pre")
        if language == "curl":
            environment = {**os.environ, "BACKLINE_KEY": key}
            done = subprocess.run(
                ["bash", "-c", text],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment,
                check=False,
                timeout=60,
            )
            assert expected in done.stdout, text + done.stderr
        else:
            programs.append(f"print('# {language}')\n{text}")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for part in done.stdout.split("# ")[1:]:
        language, _, said = part.partition("\n")
        assert printed[language] in said, part
    page.click("JavaScript")
    script = page.text("section:not([hidden]) .seg + pre").replace("${key}", key)
    script = script.replace("body: file", "body: 'a b c d'").replace("console.log", "return JSON.stringify")
    assert printed["requests"] in page.run(f"(async () => {{ {script} }})()")


def test_a_sound_fills_the_dimension_that_has_no_size(page: Page, tmp_path: Path) -> None:
    write_wav(tmp_path / "tone.wav", [0.0] * 800, 16_000)
    enter(page, "runner")
    go(page, "models/sound/try")
    page.upload("input[type=file]", tmp_path / "tone.wav")
    page.click("Run")
    assert "FP32 [1, 800]" in page.wait("document.querySelector('[data-output] h3')?.innerText")


def test_a_microphone_is_streamed_as_a_sequence_while_responses_arrive(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/listener/try")
    page.wait("document.querySelector('[aria-label=\"Length of a chunk\"]')")
    page.run("document.querySelector('[aria-label=\"Length of a chunk\"]').value = '0.1'")
    page.click("Stream live")
    page.wait("document.querySelector('main').innerText.includes('4800 samples')")  # of three chunks
    assert f"{TONE} Hz" in page.text()
    assert page.run("document.querySelector('meter').value") > 0.2
    assert violations(page) == []
    page.click("Stop streaming")
    page.wait("document.querySelector('main').innerText.includes('answered, done')")
    assert "the end" in page.text()
    script = page.text("section:not([hidden]) .seg + pre").replace("${key}", key_of("runner"))
    first = page.run(f"new Promise((done) => {{ {script.replace('console.log', 'done')} }})")
    assert json.loads(first) == {"outputs": {"output": ["1600 samples"]}}


def test_a_visitor_who_leaves_turns_the_microphone_off(page: Page) -> None:
    page.run(
        "navigator.mediaDevices.getUserMedia = async (wanted) => self.opened ="
        " await MediaDevices.prototype.getUserMedia.call(navigator.mediaDevices, wanted)"
    )
    enter(page, "runner")
    go(page, "models/sound/try")
    page.click("Stream live")
    page.wait("document.querySelector('[data-output] h3')?.innerText.includes('FP32 [1, 8000]')")
    assert page.run("opened.getTracks().map((track) => track.readyState)") == ["live"]
    go(page, "models")
    page.wait("opened.getTracks().every((track) => track.readyState === 'ended')")


def test_a_stream_ends_with_the_error_of_the_model(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/words/try")
    page.click("Recording")
    page.click("Stream live")  # WAV files, while the model takes text
    page.wait("document.querySelector('main .error')?.innerText.includes('UTF-8')")
    page.wait("[...document.querySelectorAll('button')].some((one) => one.innerText === 'Stream live')")


def test_an_error_of_the_model_is_shown_as_the_server_says_it(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/add1/try")
    page.type("textarea", "[1, 2]")
    page.click("Run")
    page.wait("document.querySelector('main .error')?.innerText.includes('unexpected shape for input')")


def test_a_streams_responses_arrive_one_by_one(page: Page) -> None:
    enter(page, "runner")
    go(page, "models/words/try")
    page.type("textarea", "one two three")
    page.click("Run")
    page.wait("document.querySelector('main').innerText.includes('3 responses, done')")
    assert [word for word in ("ONE", "TWO", "THREE") if word in page.text()] == ["ONE", "TWO", "THREE"]


def test_a_version_is_promoted_and_rolled_back(page: Page, server: ServerProcess) -> None:
    enter(page, "operator")
    go(page, "models/add1/versions")
    for version in ("1", "2"):
        row = (
            f"[...document.querySelectorAll('tr')].find((one) => /^{version}/.test(one.cells[0]?.innerText))"
        )
        button = f"[...{row}.querySelectorAll('button')].find((one) => one.innerText === 'Promote')"
        page.wait(f"Boolean({button})")
        page.run(f"{button}.click()")
        page.wait(f"document.querySelector('main').innerText.includes('Promoting version {version}: done.')")
        page.wait(f"{row}.innerText.includes('stable')")
        assert ask(server, "/v2/models/add1/labels")["labels"]["stable"] == version
    page.click("Roll back")
    page.wait("document.querySelector('main').innerText.includes('Rolling back: done.')")
    assert ask(server, "/v2/models/add1/labels")["labels"]["stable"] == "1"


def test_the_configuration_says_where_each_value_comes_from(page: Page, server: ServerProcess) -> None:
    enter(page, "viewer")
    go(page, "models/add1/config")
    row = (
        "[...document.querySelectorAll('main tr')].find((one) => one.cells[0]?.innerText === '{}').innerText"
    )
    page.wait(row.format("version_policy.all"))
    assert "config.pbtxt:1:" in page.run(row.format("version_policy.all"))
    assert page.run(row.format("input[0].dims")).split()[-1] == "model"
    assert page.run(row.format("max_batch_size")).split()[-1] == "server"


def test_an_ensemble_is_drawn(page: Page) -> None:
    enter(page, "viewer")
    go(page, "graphs")
    page.wait("document.querySelector('svg.graph')")
    label = page.run("document.querySelector('svg.graph').getAttribute('aria-label')")
    assert label == "both: inputs to add1, add1 to add10, add10 to outputs"


def test_traces_show_the_requests_of_an_ensemble(page: Page, server: ServerProcess) -> None:
    enter(page, "viewer")
    go(page, "traces")
    page.wait("document.querySelector('main').innerText.includes('Waiting for requests')")
    found = "[...document.querySelectorAll('.trace')].some((one) => one.innerText.includes('3 requests'))"
    for _ in range(100):
        ask(server, "/models/both", {"x": [1] * 16})
        if page.run(found):
            return
    page.wait(found)


def test_the_audit_log_names_who_changed_what(page: Page, server: ServerProcess) -> None:
    ask(server, "/v2/models/add10/promote", {"version": "1"})
    enter(page, "viewer")
    go(page, "audit")
    page.wait("document.querySelector('main table')?.innerText.includes('/v2/models/add10/promote')")
    assert "operator" in page.text()
    ask(server, "/v2/models/add10/promote", {"version": "1"})
    two = "document.querySelector('main table').innerText.split('/add10/promote').length > 2"
    page.wait(two)  # it appears while the page is open


def test_the_log_is_shown_as_it_grows_to_whoever_may_change_the_server(
    page: Page, server: ServerProcess
) -> None:
    enter(page, "operator")
    assert "Log" not in page.text("#nav").split("\n")
    enter(page, "root")
    go(page, "log")
    page.wait("document.querySelector('.log')?.innerText.includes('it is not an ONNX model')")
    ask(server, "/v2/logging", {"log_info": True}, "root")
    page.wait("document.querySelector('.log').innerText.includes('log settings changed by request')")
    assert "bk_" not in page.text(".log")


def test_a_repository_shows_its_last_scan_and_what_fails_in_it(page: Page) -> None:
    enter(page, "viewer")
    go(page, "repositories")
    page.wait("document.querySelector('main .error')?.innerText.includes('it is not an ONNX model')")
    text = page.text()
    assert "models" in page.text("main h2")
    assert "Last scan" in text
    assert "before each load that is requested" in text
    assert "Scan now" not in text
    enter(page, "operator")
    page.click("Scan now")
    page.wait("document.querySelector('main h2')")


@pytest.mark.skipif(not importlib.util.find_spec("basic_pitch"), reason="basic-pitch is not installed")
def test_a_melodys_notes_are_on_the_piano_roll(page: Page, tmp_path: Path) -> None:
    sys.path.insert(0, str(EXAMPLE))
    try:
        import melody
    finally:
        sys.path.remove(str(EXAMPLE))
    file = tmp_path / "melody.wav"
    true = [one for one in melody.render(file) if one.end < HEARD]
    enter(page, "runner")
    go(page, "models/basic_pitch/try")
    page.upload("input[type=file]", file)
    page.click("Run")
    notes = page.wait("document.querySelector('svg[data-notes]')?.dataset.notes").split()
    assert {one.name.replace("#", "♯") for one in true} <= set(notes)


def test_only_midi_notes_are_drawn_as_a_piano_roll(page: Page) -> None:
    """A model may respond with anything: a row for each pitch up to a billion would freeze the page."""
    enter(page, "runner")
    page.run(
        """import('/console/results.js').then(({ outputs }) => {
          const show = (...pitches) => {
            const notes = pitches.map((midi) => ({ midi, start: 0, end: 1 }));
            return outputs({ notes }, [{ name: 'notes', datatype: 'BYTES' }])[0].innerText;
          };
          window.shown = [show(60, 64.5), show(60, 1e9), show(...Array(20001).fill(60))];
        })"""
    )
    page.wait("window.shown")
    drawn, too_high, too_many = (page.run(f"window.shown[{number}]") for number in range(3))
    assert "2 notes: C4 F4" in drawn
    assert "Piano roll" not in too_high + too_many


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1440, False)], ids=["phone-dark", "desk-light"])
def test_every_page_fits_its_window_and_is_accessible(page: Page, width: int, dark: bool) -> None:
    enter(page, "root")
    page.size(width, dark=dark)
    for path in PAGES:
        go(page, path)
        page.wait("document.querySelector('main h1') && !document.querySelector('main .busy')")
        page.wait("!document.querySelector('main').innerText.includes('…') || location.hash === '#/traces'")
        page.wait("!location.hash.endsWith('/try') || document.querySelector('fieldset')")
        assert page.run("document.documentElement.scrollWidth") <= width, path
        bar = "[...document.querySelectorAll('.tabs')].some((one) => one.offsetWidth > one.clientWidth)"
        assert not page.run(bar), f"{path}: the tabs have a scroll bar"
        assert violations(page) == [], f"{path} at {width} pixels"
