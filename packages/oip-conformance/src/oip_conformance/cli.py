"""The command `oip-conformance`."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from oip_conformance import matrix, report
from oip_conformance.areas import ROWS
from oip_conformance.http1 import HttpClient
from oip_conformance.models.writer import FORMATS, ModelError, write_models
from oip_conformance.row import Level, NoAnswer, Verdict
from oip_conformance.rpc import RpcClient
from oip_conformance.runner import PROFILES, RUN_SECONDS, Result, learn_ports, models_on, run, run_row
from oip_conformance.suite_models import MODELS
from oip_conformance.target import Target


class UsageError(Exception):
    """The command line cannot be carried out; the message says why and what to do."""


def _known(name: str, known: Collection[str], what: str) -> str:
    """The name, if it is known.

    Raises UsageError, which names the most similar one.
    """
    if name in known:
        return name
    similar = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean '{similar[0]}'?" if similar else f"; known are {', '.join(sorted(known))}"
    raise UsageError(f"there is no {what} '{name}'{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oip-conformance",
        description="Checks a server of the Open Inference Protocol against its specification, row by row.",
        epilog="Exit status: 0 if no MUST row failed, 1 if one did, a profile that was asked for is not offered, "
        "or the run is incomplete; 2 if it could not be run.",
    )
    parser.add_argument("url", nargs="?", help="the server, such as http://localhost:8000")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="the server's gRPC address")
    parser.add_argument("--profile", metavar="LIST", help=f"some of {','.join(PROFILES)}; default: those offered")
    parser.add_argument("--row", action="append", default=[], metavar="ROW", help="run only this row or area")
    parser.add_argument("--map", action="append", default=[], metavar="MODEL=NAME", help="the server's name of a model")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="sent with every request"
    )
    parser.add_argument("--explain", metavar="ROW", help="say all about a row; with a URL, its requests and answers")
    parser.add_argument("--list", action="store_true", help="list all rows")
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS, help="the longest run (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, which --matrix reads")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit's XML")
    parser.add_argument("--badge", type=Path, metavar="FILE", help="write a badge in SVG")
    parser.add_argument("--label", help="the server's name in the matrix, if its metadata does not say enough")
    parser.add_argument("--matrix", type=Path, nargs="+", metavar="FILE", help="make a matrix of files from --json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the matrix is written as HTML")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where the matrix is written as Markdown")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="write the suite's models into this folder")
    parser.add_argument("--format", default="triton", help=f"of the models: {', '.join(FORMATS)} (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="print only failures and the summary")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _carry_out(options)
    except (UsageError, ModelError, OSError) as error:
        print(f"oip-conformance: {error}", file=sys.stderr)
        return 2
    except NoAnswer as error:
        print(f"oip-conformance: the server does not answer: {error.got}", file=sys.stderr)
        return 2


def _carry_out(options: argparse.Namespace) -> int:
    if options.list:
        for row in ROWS.values():
            print(f"{row.level:<8} {row.profile:<16} {row.id:<32} {row.sentence}")
        return 0
    if options.models:
        format = _known(options.format, FORMATS, "format")
        written = write_models(options.models, format)
        print(f"wrote {len(written)} models as {format} into {options.models}: {', '.join(written)}")
        return 0
    if options.matrix:
        return _matrix(options)
    if options.explain:
        return _explain(options)
    if not options.url:
        raise UsageError("give the URL of a server, or one of --list, --explain, --models and --matrix")
    return _run(options)


def _target(options: argparse.Namespace) -> Target:
    headers = []
    for given in options.header:
        name, colon, value = given.partition(":")
        if not colon:
            raise UsageError(f"--header '{given}': write 'name: value'")
        headers.append((name.strip(), value.strip()))
    names = {}
    for given in options.map:
        model, equals, name = given.partition("=")
        if not equals or not name:
            raise UsageError(f"--map {given}: write MODEL=NAME, such as sum=my_model")
        names[_known(model, MODELS, "model of the suite")] = name
    try:
        http = HttpClient(options.url, tuple(headers))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Target(http, RpcClient(options.grpc, tuple(headers)) if options.grpc else None, names)


def _run(options: argparse.Namespace) -> int:
    asked = [_known(name.strip(), PROFILES, "profile") for name in (options.profile or "").split(",") if name.strip()]
    areas = {id.split(".")[0] for id in ROWS}
    chosen = [_known(name, [*ROWS, *areas], "row or area") for name in options.row]
    rows = [row for row in ROWS.values() if not chosen or row.id in chosen or row.id.split(".")[0] in chosen]
    colour = sys.stdout.isatty()

    def show(result: Result) -> None:
        if not options.quiet:
            print(report.line(result, colour), flush=True)

    target = _target(options)
    outcome = run(target, rows, asked or list(PROFILES), options.seconds, report=show)
    for level in (Level.SHOULD, Level.OBSERVED, Level.MUST):
        for result in outcome.failures(level):
            print(f"\n{report.failure(result)}")
    print(f"\n{report.summary(outcome)}")
    if options.label:
        outcome.server = options.label
    if options.json:
        report.write_json(outcome, options.json)
    if options.junit:
        report.write_junit(outcome, options.junit)
    if options.badge:
        report.write_badge(outcome, options.badge)
    if target.rpc is not None:
        target.rpc.close()
    bad = outcome.failures(Level.MUST) or outcome.failures(Level.OBSERVED)
    return 1 if bad or outcome.stopped or any(profile in outcome.missing for profile in asked) else 0


def _explain(options: argparse.Namespace) -> int:
    row = ROWS[_known(options.explain, ROWS, "row")]
    if not options.url:
        print(report.explain(row, None))
        return 0
    target = _target(options)
    learn_ports(target, models_on(target, row.models))
    result, _ = run_row(target, row, options.seconds)
    print(report.explain(row, result))
    return 1 if result.verdict is Verdict.FAILED else 0


def _matrix(options: argparse.Namespace) -> int:
    runs = []
    for path in options.matrix:
        try:
            runs.append(json.loads(path.read_text()))
            runs[-1]["rows"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is not a file that --json has written") from None
    if not options.html and not options.markdown:
        raise UsageError("say where the matrix goes: --html FILE, --markdown FILE or both")
    if options.html:
        options.html.write_text(matrix.to_html(runs))
    if options.markdown:
        options.markdown.write_text(matrix.markdown(runs))
    return 0
