"""Errors in OpenAI's form: {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}."""

from __future__ import annotations

from typing import Final

from backline.dialects.answers import encode_json
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound

_INVALID: Final = "invalid_request_error"
#: The type and the code of an error by its status.
_KINDS: Final = {
    401: (_INVALID, "invalid_api_key"),
    403: (_INVALID, "insufficient_permissions"),
    404: (_INVALID, "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


class InvalidParameter(InvalidArgument):
    """A parameter of the request is missing or has a value that is not taken."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class NoModel(NotFound):
    """There is no model with this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name[:128]}` does not exist or you do not have access to it.")


def unreadable(error: Exception) -> InvalidArgument:
    """Returns the error for a body that is not a JSON object with the expected keys."""
    return InvalidArgument(f"We could not parse the JSON body of your request: {error}")


def error_form(error: BacklineError) -> tuple[int, bytes]:
    """Returns the status of an error, and the JSON that describes it."""
    status = error.http_status
    kind, code = _KINDS.get(status, (_INVALID if status < 500 else "server_error", None))
    param = error.param if isinstance(error, InvalidParameter) else None
    text = error.public_message.encode(errors="replace").decode()
    return status, encode_json({"error": {"message": text, "type": kind, "param": param, "code": code}})
