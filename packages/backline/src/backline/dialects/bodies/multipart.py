"""Reads multipart/form-data (RFC 7578), as HTML forms and `curl -F` send it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Buffer

#: The maximum number of parts in a body: a model has far fewer inputs.
MAX_PARTS = 256
#: The maximum size of a part's header in bytes.
_MAX_HEADER = 8192
#: A parameter of a header field (RFC 9110, section 5.6.6): its name, and its value, quoted or unquoted.
_PARAMETER = re.compile(r""";[ \t]*([\w!#$%&'*+.^`|~-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))""")
_TOKEN = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]").fullmatch


@dataclass(frozen=True, slots=True)
class FormPart:
    """A field of a form. `filename` and `content_type` are empty if the part does not state them."""

    name: str
    filename: str
    content_type: str
    body: bytes


def media_type(value: bytes) -> tuple[str, dict[str, str]]:
    """Returns the type in a Content-Type field, in lower case, and its parameters."""
    return value.partition(b";")[0].strip().lower().decode("latin-1"), _parameters(value.decode("latin-1"))


def _parameters(field: str) -> dict[str, str]:
    """Returns the parameters after the first semicolon. A quote in a file's name stays %22, as browsers send
    it.
    """
    return {
        name.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
        for name, quoted, plain in _PARAMETER.findall(field)
    }


def read_multipart(body: Buffer, boundary: str) -> list[FormPart]:
    """Returns the parts of a body, in order. Raises InvalidArgument for a malformed body."""
    mark = boundary.encode("latin-1", "replace")
    if _TOKEN(mark) is None:
        raise InvalidArgument(
            "the Content-Type 'multipart/form-data' has no valid boundary; let the HTTP client set this field"
        )
    # The first boundary may be at the very start; every other boundary follows a line break.
    delimiter = b"\r\n--" + mark
    text = b"\r\n" + bytes(body)
    at = text.find(delimiter)
    parts: list[FormPart] = []
    while at >= 0:
        start = at + len(delimiter)
        if text[start : start + 2] == b"--":
            return parts
        line_end = text.find(b"\r\n", start)
        if line_end < 0 or text[start:line_end].strip(b" \t"):
            break
        following = text.find(delimiter, line_end)
        if following < 0:
            break
        if len(parts) == MAX_PARTS:
            raise InvalidArgument(f"the form has more than {MAX_PARTS} parts; send one part for each input")
        parts.append(_part(text, line_end, following, len(parts) + 1))
        at = following
    raise InvalidArgument(
        f"the form is malformed or cut short after {len(parts)} parts: its boundary is missing"
    )


def _part(text: bytes, start: int, end: int, number: int) -> FormPart:
    """Returns the part in `text[start:end]`: header lines, an empty line, and the contents."""
    blank = text.find(b"\r\n\r\n", start, min(end, start + _MAX_HEADER))
    if blank < 0:
        raise InvalidArgument(f"part {number} of the form has no header, or a header that is too long")
    fields: dict[str, bytes] = {}
    for line in text[start:blank].split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if colon:
            fields[field.strip().lower().decode("latin-1")] = value.strip()
    disposition = _parameters(fields.get("content-disposition", b"").decode(errors="replace"))
    name = disposition.get("name")
    if not name:
        raise InvalidArgument(f"part {number} of the form has no name; name it after an input of the model")
    content_type = media_type(fields["content-type"])[0] if "content-type" in fields else ""
    return FormPart(name, disposition.get("filename", ""), content_type, text[blank + 4 : end])
