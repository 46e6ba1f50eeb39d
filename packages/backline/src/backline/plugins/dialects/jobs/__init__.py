"""Jobs: requests that the server keeps on disk and runs later, however often it is killed in between."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="jobs",
        target="backline.plugins.dialects.jobs.service:JobsDialect",
        summary="Requests that are kept on disk and run later",
        routes=(
            "POST /v2/models/{}/jobs",
            "POST /v2/models/{}/versions/{}/jobs",
            "GET /v2/jobs",
            "GET /v2/jobs/{}",
            "DELETE /v2/jobs/{}",
            "GET /v2/jobs/{}/result",
            "POST /v2/jobs/{}/retry",
        ),
        page="docs/jobs.md",
    ),
)
