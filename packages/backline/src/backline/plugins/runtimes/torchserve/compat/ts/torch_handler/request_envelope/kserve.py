"""The envelope for KServe's v1 protocol, for one request per batch. The request is `{"instances": [...]}`,
and the response is `{"predictions": [...]}`, or `{"explanations": [...]}` if the request has the header
`explain` with the value "True".
"""

from __future__ import annotations

from typing import Any

from .base import BaseEnvelope, json_of


class KServeEnvelope(BaseEnvelope):
    def parse_input(self, data: Any) -> Any:
        return json_of(data[0])["instances"]

    def format_output(self, data: Any) -> Any:
        asked = self.context.get_request_header(0, "explain") == "True"
        return [{"explanations" if asked else "predictions": data}]
