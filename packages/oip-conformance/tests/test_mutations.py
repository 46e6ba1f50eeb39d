"""Sixty faults, planted one at a time in a correct server: each is found, by a row that names it."""

from __future__ import annotations

import pytest

from oip_conformance.areas import ROWS
from oip_conformance.http1 import HttpClient
from oip_conformance.row import Level, Verdict
from oip_conformance.rpc import RpcClient
from oip_conformance.runner import PROFILES, Run, run
from oip_conformance.target import Target
from reference import reference_server

#: By fault, the row that is about it.
FAULTS = {
    "not-live": "health.live",
    "not-ready": "health.ready",
    "model-not-ready": "health.model-ready",
    "unknown-ready": "health.unknown-model",
    "ready-says-false": "health.bodies-agree",
    "extensions-missing": "metadata.server.extensions",
    "version-a-number": "metadata.server.version",
    "metadata-other-name": "metadata.model.name",
    "versions-as-numbers": "metadata.model.versions",
    "one-version-listed": "metadata.model.all-versions",
    "platform-missing": "metadata.model.platform",
    "output-not-listed": "metadata.model.outputs",
    "variable-as-zero": "metadata.tensor.variable",
    "datatype-with-prefix": "metadata.datatypes",
    "unknown-metadata": "metadata.unknown-model",
    "case-ignored": "metadata.case",
    "any-route": "metadata.unknown-route",
    "error-as-200": "errors.model-fails",
    "error-as-detail": "errors.unknown-model",
    "shape-reversed": "infer.row-major",
    "rows-swapped": "infer.batch",
    "id-missing": "infer.id",
    "id-stripped": "infer.id-exact",
    "ids-shared": "transport.concurrent",
    "outputs-swapped": "infer.values",
    "inputs-by-position": "infer.input-order",
    "first-output-only": "infer.outputs-all",
    "choice-ignored": "infer.outputs-one",
    "unknown-output-ignored": "infer.outputs-unknown",
    "model-name-missing": "infer.model-name",
    "int64-through-double": "infer.int64-exact",
    "int8-unsigned": "infer.datatype.INT8",
    "fp64-through-fp32": "infer.fp64-exact",
    "bool-as-number": "infer.datatype.BOOL",
    "text-as-ascii": "infer.unicode",
    "text-truncated": "transport.long-text",
    "nested-refused": "infer.nested",
    "empty-refused": "infer.empty",
    "short-padded": "errors.data-short",
    "long-cut": "errors.data-long",
    "datatype-unchecked": "errors.datatype-other",
    "width-unchecked": "errors.width",
    "missing-as-zeros": "errors.input-missing",
    "twice-accepted": "errors.input-twice",
    "negative-as-its-amount": "errors.shape-negative",
    "bad-json-as-empty": "errors.not-json",
    "version-ignored": "versions.first",
    "unknown-version-served": "versions.unknown",
    "size-off-by-one": "binary.in-out",
    "header-missing": "binary.header",
    "big-endian": "binary.datatype.INT32",
    "true-as-255": "binary.bool-byte",
    "tail-ignored": "binary.tail",
    "short-binary-padded": "binary.size-short",
    "binary-in-model-order": "binary.input-order",
    "binary-not-overridden": "binary.output-false",
    "grpc-id-missing": "grpc.id",
    "raw-outputs-reversed": "grpc.infer",
    "mixed-accepted": "grpc.mixed",
    "raw-short-padded": "grpc.raw-short",
    "typed-int8-masked": "grpc.datatype.INT8",
    "unknown-model-served": "grpc.unknown-model",
    "unloaded-hidden": "repository.index-unloaded",
    "load-without-effect": "repository.load",
    "unload-without-effect": "repository.unload",
    "unknown-loaded": "repository.load-unknown",
    "response-dropped": "stream.decoupled",
    "stream-id-missing": "stream.id",
    "stream-error-as-nothing": "stream.error",
    "stream-error-dropped": "generate.stream.error",
    "sequences-shared": "sequence.interleaved",
    "start-ignored": "sequence.start",
    "counts-requests": "statistics.inference-count",
    "fail-as-success": "statistics.fail-count",
    "seconds": "statistics.last-inference",
    "classes-ascending": "classification.order",
    "memory-and-data": "shared-memory.output",
    "offset-ignored": "shared-memory.input",
    "region-unchecked": "shared-memory.beyond",
    "unregister-without-effect": "shared-memory.unregister",
    "text-renamed": "generate.text",
    "events-as-json": "generate.stream.content-type",
    "events-at-the-end": "generate.stream.as-made",
    "log-not-kept": "logging.change",
    "null-ignored": "tracing.model",
    "model-trace-global": "tracing.model",
}


def _run(fault: str, rows: list[str], row_seconds: float = 6.0) -> Run:
    with reference_server(fault) as (url, address):
        client = RpcClient(address)
        try:
            return run(
                Target(HttpClient(url), client), [ROWS[id] for id in rows], list(PROFILES), row_seconds=row_seconds
            )
        finally:
            client.close()


def test_correct_server_passes_every_row_and_two_runs_agree() -> None:
    verdicts = []
    for _ in range(2):
        outcome = _run("", list(ROWS))
        assert [(r.row.id, r.expected, r.got) for r in outcome.results if r.verdict is Verdict.FAILED] == []
        assert [(r.row.id, r.note) for r in outcome.results if r.verdict is Verdict.NOT_RUN] == []
        assert sum(r.seconds for r in outcome.results) < 90
        verdicts.append([(r.row.id, r.verdict, r.note) for r in outcome.results])
    assert verdicts[0] == verdicts[1]
    assert 250 <= len(verdicts[0]) <= 320
    assert sum(row.level is Level.MUST for row in ROWS.values()) > 200


def test_faults_are_at_least_sixty_and_each_row_is_known() -> None:
    assert len(FAULTS) >= 60
    assert set(FAULTS.values()) <= set(ROWS)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_by_the_row_about_it(fault: str) -> None:
    outcome = _run(fault, [FAULTS[fault]], row_seconds=3.0)
    found = {result.row.id: result for result in outcome.results}[FAULTS[fault]]
    assert found.verdict is Verdict.FAILED, found.note
    assert found.expected
    assert found.got
