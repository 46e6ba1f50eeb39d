"""A matrix of several runs: which server keeps its word, row by row, as HTML or Markdown."""

from __future__ import annotations

import html
from collections import Counter
from typing import Any

_MARKS = {"passed": "yes", "failed": "no", "not run": "\u2013"}


def _label(run: dict[str, Any]) -> str:
    return str(run.get("label") or run["server"])


def _rows(runs: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any] | None]]]:
    """Each row of any run, with its result in every run."""
    rows = {row["id"]: row for run in runs for row in run["rows"]}
    results = [{row["id"]: row for row in run["rows"]} for run in runs]
    return [(row, [result.get(id) for result in results]) for id, row in rows.items()]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return _MARKS["not run"]
    return str(row["note"]) if row["verdict"] == "observed" else _MARKS[row["verdict"]]


def _counts(run: dict[str, Any]) -> list[str]:
    by_level = Counter((row["level"], row["verdict"]) for row in run["rows"])
    cells = []
    for level in ("MUST", "SHOULD"):
        passed, failed = by_level[level, "passed"], by_level[level, "failed"]
        cells.append(f"{passed} of {passed + failed}")
    not_run = sum(row["verdict"] == "not run" for row in run["rows"])
    return [*cells, str(not_run)]


def markdown(runs: list[dict[str, Any]]) -> str:
    """Tables: the runs, then the rows by area."""
    lines = ["| server | date | MUST | SHOULD | not run | not offered |", "| --- | --- | --- | --- | --- | --- |"]
    for run in runs:
        cells = [_label(run), run["date"][:10], *_counts(run), ", ".join(run["missing"]) or "\u2013"]
        lines.append(f"| {' | '.join(cells)} |")
    area = ""
    for row, cells in _rows(runs):
        if row["id"].split(".")[0] != area:
            area = row["id"].split(".")[0]
            heads = " | ".join(_label(run) for run in runs)
            lines += ["", f"### {area}", "", f"| row | level | {heads} |", "| --- | --- |" + " --- |" * len(runs)]
        texts = [_cell(cell).replace("|", "\\|") for cell in cells]
        id = row["id"].split(".", 1)[1]
        name = f"[{id}]({row['citation']})" if row["citation"] else id
        lines.append(f"| {name}: {row['sentence']} | {row['level']} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


_STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2rem;color:#222}table{border-collapse:collapse}
th,td{border:1px solid #ccc;padding:.25rem .5rem;text-align:left;vertical-align:top}
thead th{position:sticky;top:0;background:#eee}
.passed{background:#e0f2e1}.failed{background:#fbdcdc}.not{color:#767676}td small{color:#555}"""


def to_html(runs: list[dict[str, Any]]) -> str:
    """One page, without scripts: a cell's details open when it is clicked."""
    heads = "".join(
        f"<th scope=col>{html.escape(_label(run))}<br><small>{html.escape(run['date'][:10])}<br>"
        f"MUST {_counts(run)[0]}<br>SHOULD {_counts(run)[1]}</small></th>"
        for run in runs
    )
    body = []
    for row, cells in _rows(runs):
        cited = f' <a href="{html.escape(row["citation"])}">source</a>' if row["citation"] else ""
        tds = []
        for cell in cells:
            text = html.escape(_cell(cell))
            if cell and cell["verdict"] == "failed":
                asked = "\n".join(f"$ {request}\n{answer}" for request, answer in cell["exchanges"][-1:])
                detail = f"expected {cell['expected']}\ngot {cell['got']}\n\n{asked}"
                text = f"<details><summary>no</summary><pre>{html.escape(detail)}</pre></details>"
            kind = cell["verdict"].split()[0] if cell else "not"
            tds.append(f"<td class={kind}>{text}</td>")
        body.append(
            f"<tr><th scope=row>{html.escape(row['id'])}<br><small>{html.escape(row['sentence'])}{cited}</small></th>"
            f"<td>{row['level']}</td>{''.join(tds)}</tr>"
        )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Open Inference Protocol: conformance</title>"
        f"<style>{_STYLE}</style><h1>Open Inference Protocol: conformance</h1>"
        f"<table><thead><tr><th scope=col>row</th><th scope=col>level</th>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></html>\n"
    )
