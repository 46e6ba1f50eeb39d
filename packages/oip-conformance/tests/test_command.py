"""The command: what it prints, what it writes, and what it says when it is used wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from oip_conformance.areas import ROWS
from oip_conformance.cli import main
from oip_conformance.http1 import Request
from reference import reference_server


@pytest.fixture(scope="module")
def faulty() -> Iterator[str]:
    """The URL of a server that returns no ids."""
    with reference_server("id-missing") as (url, _):
        yield url


def test_failure_shows_sentence_request_answer_and_expectation(faulty: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([faulty, "--row", "infer.id"]) == 1
    text = capsys.readouterr().out
    assert "FAILED" in text
    for part in ("this identifier must be returned", "line 221", "curl -si", '"id": "42"', "HTTP 200", "a key 'id'"):
        assert part in text


def test_misspelt_key_of_an_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with reference_server("text-renamed") as (url, _):
        assert main([url, "--row", "generate.text"]) == 1
    assert "perhaps   'output' should be called 'text_output'" in capsys.readouterr().out


def test_reports_are_written(faulty: str, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"run.{kind}" for kind in ("json", "junit", "badge", "html", "markdown")}
    written = [argument for kind in ("json", "junit", "badge") for argument in (f"--{kind}", str(files[kind]))]
    assert main([faulty, "--row", "infer", "--label", "faulty 1", *written]) == 1
    document = json.loads(files["json"].read_text())
    assert document["server"] == "faulty 1"
    rows = {row["id"]: row for row in document["rows"]}
    assert rows["infer.id"]["verdict"] == "failed"
    assert rows["infer.id"]["exchanges"][0][0].startswith("curl -si")
    suite = ElementTree.parse(files["junit"]).getroot()
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert sorted(failed) == sorted(id for id, row in rows.items() if row["verdict"] == "failed")
    assert len(failed) == 2
    must = sum(row["level"] == "MUST" for row in rows.values())
    assert f"{must - 2} of {must} MUST" in ElementTree.parse(files["badge"]).getroot()[-1][-1].text  # type: ignore[operator]

    matrix = ["--matrix", str(files["json"]), str(files["json"]), "--html", str(files["html"])]
    assert main([*matrix, "--markdown", str(files["markdown"])]) == 0
    assert files["html"].read_text().count("<summary>no</summary>") == 4
    assert "| [id](https://github.com/kserve/kserve/blob/" in files["markdown"].read_text()


def test_explain_shows_a_row_with_and_without_a_server(faulty: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--explain", "infer.id"]) == 0
    assert ROWS["infer.id"].sentence in capsys.readouterr().out
    assert main([faulty, "--explain", "infer.id"]) == 1
    text = capsys.readouterr().out
    assert f"$ curl -si {faulty}/v2/models/sum/infer" in text
    assert "failed" in text


def test_list_has_every_row_with_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS)
    assert all(line.split()[0] in ("MUST", "SHOULD", "OBSERVED") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://h", "--profile", "bnary"], "there is no profile 'bnary'; did you mean 'binary'?"),
        (["http://h", "--row", "infer.ids"], "there is no row or area 'infer.ids'; did you mean 'infer.id'?"),
        (["--explain", "infer.nestd"], "did you mean 'infer.nested'?"),
        (["http://h", "--map", "summ=x"], "did you mean 'sum'?"),
        (["http://h", "--map", "sum"], "write MODEL=NAME"),
        (["http://h", "--header", "x"], "write 'name: value'"),
        (["ftp://h"], "is not the URL of a server"),
        (["--models", "m", "--format", "onx"], "did you mean 'onnx'?"),
        ([], "give the URL of a server"),
        (["--matrix", __file__, "--html", "x"], "is not a file that --json has written"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_binary_request_is_shown_as_a_command_that_sends_the_same_bytes() -> None:
    curl = Request("POST", "http://h/x", (), b"a'%\x00\xff\\").curl()
    assert curl == r"printf 'a\047\045\000\377\134' | curl -si http://h/x --data-binary @-"
