"""The areas of the suite, in the order in which they are run."""

from __future__ import annotations

from oip_conformance.areas import (
    binary,
    errors,
    generate,
    grpc_unary,
    health,
    infer,
    metadata,
    repository,
    sequence,
    settings,
    shared_memory,
    statistics,
    stream,
    transport,
    versions,
)
from oip_conformance.row import Row

AREAS = (
    health.area,
    metadata.area,
    infer.area,
    errors.area,
    versions.area,
    transport.area,
    binary.area,
    grpc_unary.area,
    repository.area,
    stream.area,
    sequence.area,
    statistics.statistics,
    statistics.configuration,
    statistics.classification,
    shared_memory.area,
    generate.area,
    settings.logging,
    settings.tracing,
)
ROWS: dict[str, Row] = {row.id: row for area in AREAS for row in area}
