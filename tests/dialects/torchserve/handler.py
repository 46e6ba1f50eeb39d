"""The handler of the archives with which the exchanges in exchanges.json were recorded."""

import os

from ts.utils.util import PredictionException


def shown(value):
    return value.decode("latin-1") if isinstance(value, bytearray) else value


def handle(data, context):
    if data is None:
        return None
    results = []
    for index, row in enumerate(data):
        if context.get_request_header(index, "describe") == "True":
            results.append({"labels": ["cat", "dog"]})
            continue
        body = row.get("data", row.get("body"))
        asked = bytes(body) if isinstance(body, bytearray) else b""
        if asked == b"bad":
            raise PredictionException("a bad request", 404)
        if asked == b"broken":
            raise KeyError("it broke")
        if asked == b"few":
            return []
        if asked == b"no list":
            return {"a": 1}
        if asked == b"set":
            return [{1}]
        if asked == b"die":
            os._exit(3)
        if asked == b"text":
            results.append("plain text")
        elif asked == b"bytes":
            results.append(b"\x00\xff")
        elif asked == b"number":
            results.append(3.5)
        elif asked == b"letters":
            results.append({"a": "\u00e9", "b": [1, {"c": None}]})
        else:
            if asked == b"teapot":
                context.set_response_status(418, "no tea", index)
            if asked == b"typed":
                context.set_response_content_type(index, "image/x-test")
                context.set_response_header(index, "x-mine", "yes")
            results.append(
                {
                    "row": {name: [type(value).__name__, shown(value)] for name, value in row.items()},
                    "explain": context.get_request_header(index, "explain"),
                    "version": context.manifest["model"]["modelVersion"],
                }
            )
    return results
