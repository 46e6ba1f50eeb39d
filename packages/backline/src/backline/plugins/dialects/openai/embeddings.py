"""Reads requests for embeddings, and writes the vectors."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final
from uuid import uuid4

import msgspec
import numpy as np
from msgspec import Raw, Struct

from backline.dialects.answers import encode_json
from backline.dialects.bodies.json_text import check_json
from backline.dialects.bodies.requests import REQUEST_ID, request_id
from backline.dialects.exchange import HttpBody
from backline.dialects.json_data import write_nested
from backline.dialects.off_loop import LARGE, LargeRequest, is_long
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.plugins.dialects.openai.errors import InvalidParameter, unreadable
from backline.wire.application import Fields
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.errors import Unsupported
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Buffer, Tensor

#: The maximum number of texts of a request: OpenAI's limit.
MAX_TEXTS: Final = 2048
_EMBEDDING: Final = "embedding"
#: The outputs of a text model that count the tokens of each row, and those beyond the model's limit.
_TOKENS: Final = "tokens"
_TRUNCATED: Final = "truncated"
_TOKEN_IDS: Final = "token_ids"
#: Ends the shorter rows of token ids.
_PADDING: Final = -1
_FLOATS: Final = (DataType.FP16, DataType.FP32, DataType.FP64)
_FIELDS: Final[Fields] = ((b"content-type", b"application/json"),)


@decodable
class _Document(Struct, forbid_unknown_fields=True):
    """OpenAI's parameters. `user` names the caller's own user, and has no effect."""

    model: str
    input: Raw
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None


_decode = msgspec.json.Decoder(_Document).decode
_text = msgspec.json.Decoder(str).decode
_texts = msgspec.json.Decoder(list[str]).decode
_ids = msgspec.json.Decoder(list[int]).decode
_lists_of_ids = msgspec.json.Decoder(list[list[int]]).decode


class EmbeddingPlan(Struct, frozen=True, eq=False):
    """A RequestPlan for embeddings. `dimensions` of 0 keeps all."""

    output: str
    outputs: tuple[str, ...]
    base64: bool
    dimensions: int

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        return InferRequest(model, inputs, version, id, self.outputs, None, 0, deadline)

    def is_large(self, response: InferResponse) -> bool:
        return any(map(is_long, response.outputs))

    def release(self) -> None:
        """Does nothing: a plan holds no resources."""


class EmbeddingReader:
    """Reads requests. `read` implements the protocol ReadRequest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(
        self, body: Buffer, headers: Mapping[bytes, bytes], model: str, version: str, on_loop: bool
    ) -> tuple[EmbeddingPlan, str, dict[str, Tensor]]:
        served = self._engine.find_ready(model, version)
        if on_loop and len(body) > LARGE:
            raise LargeRequest
        check_json("the request", body)
        try:
            document: _Document = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise unreadable(error) from None
        form = document.encoding_format or "float"
        if form not in ("float", "base64"):
            raise InvalidParameter(
                f"'{form[:64]}' is not one of 'float' and 'base64': set encoding_format to one of them",
                "encoding_format",
            )
        dimensions = document.dimensions or 0
        if dimensions < 0 or document.dimensions == 0:
            raise InvalidParameter(
                f"{document.dimensions} is less than the minimum of 1 for dimensions", "dimensions"
            )
        output, counts = embedding_outputs(served)
        plan = EmbeddingPlan(output, (output, *counts), form == "base64", dimensions)
        given = _read_input(served, bytes(document.input))
        id = request_id(headers) or f"req_{uuid4().hex}"
        return plan, id, {given.name: given}


def embedding_outputs(model: Model) -> tuple[str, tuple[str, ...]]:
    """Returns the output with a vector per row, and the outputs that count tokens.

    Raises Unsupported for a model without embeddings.
    """
    outputs = model.signature.outputs
    vectors = [one for one in outputs if one.datatype in _FLOATS and len(one.shape) == 2]
    named = [one for one in vectors if one.name == _EMBEDDING] or (vectors if len(outputs) == 1 else [])
    texts = [one for one in model.signature.inputs if one.datatype is DataType.BYTES]
    if not named or len(texts) != 1:
        raise Unsupported(
            f"model '{model.name}' does not embed: it needs one input of texts, and an output"
            f" '{_EMBEDDING}' with a vector of floats for each"
        )
    return named[0].name, tuple(one.name for one in outputs if one.name in (_TOKENS, _TRUNCATED))


def _read_input(model: Model, text: bytes) -> Tensor:
    first = text[1:].lstrip()[:1] if text[:1] == b"[" else b""
    try:
        if text[:1] == b'"':
            texts: list[str] = [_text(text)]
        elif first in (b'"', b"]"):
            texts = _texts(text)
        else:
            ids: list[list[int]] = _lists_of_ids(text) if first == b"[" else [_ids(text)]
            return _token_ids(model, ids)
    except msgspec.ValidationError:
        raise InvalidParameter(
            "input is not a string, a list of strings, a list of token ids or a list of such lists", "input"
        ) from None
    _check_count(len(texts))
    spec = next(one for one in model.signature.inputs if one.datatype is DataType.BYTES)
    data = np.empty(len(texts), np.object_)
    data[:] = [one.encode() for one in texts]
    data = data.reshape((len(texts),) + (1,) * (len(spec.shape) - 1))
    return Tensor(spec.name, DataType.BYTES, data.shape, data)


def _token_ids(model: Model, rows: list[list[int]]) -> Tensor:
    spec = next((one for one in model.signature.inputs if one.name == _TOKEN_IDS), None)
    if spec is None:
        raise InvalidParameter(f"model '{model.name}' takes no token ids: send texts", "input")
    _check_count(len(rows))
    if not all(rows):
        raise InvalidParameter("input has no token ids: send at least one for each text", "input")
    if not all(min(row) >= 0 and max(row) < 1 << 31 for row in rows):
        raise InvalidParameter("input has a token id that is not in the range from 0 to 2147483647", "input")
    longest = max(map(len, rows))
    # One long row must not make every other one as long in memory.
    if len(rows) * longest > 8 << 20:
        raise InvalidParameter(f"{len(rows)} lists of up to {longest} token ids are too many", "input")
    data = np.full((len(rows), longest), _PADDING, np.int32)
    for row, one in zip(data, rows, strict=True):
        row[: len(one)] = one
    return Tensor(spec.name, DataType.INT32, data.shape, data)


def _check_count(number: int) -> None:
    if not 0 < number <= MAX_TEXTS:
        raise InvalidParameter(f"input has {number} texts: send 1 to {MAX_TEXTS}", "input")


def write_embeddings(plan: EmbeddingPlan, response: InferResponse) -> HttpBody:
    """Returns the header fields and the body of the response."""
    outputs = {one.name: one for one in response.outputs}
    vectors = np.asarray(outputs[plan.output].data, np.float32)
    counts = outputs.get(_TOKENS)
    if counts is not None and (counts.data < 0).any():
        raise InvalidParameter("input has a token id that the model does not know", "input")
    truncated = outputs.get(_TRUNCATED)
    if truncated is not None and truncated.data.any():
        row = int(truncated.data.argmax())
        raise InvalidParameter(
            f"text {row} of input has {truncated.data[row]} tokens more than the model's maximum context"
            " length; shorten it",
            "input",
        )
    if plan.dimensions:
        vectors = _shortened(vectors, plan.dimensions)
    if plan.base64:
        texts = [b'"%b"' % base64.b64encode(row.astype("<f4").tobytes()) for row in vectors]
    else:
        texts = [b"[%b]" % row for row in write_nested(vectors)[2:-2].split(b"],[")]
    data = b",".join(
        [b'{"object":"embedding","index":%d,"embedding":%b}' % pair for pair in enumerate(texts)]
    )
    total = 0 if counts is None else int(counts.data.sum())
    end = encode_json(
        {"model": response.model_name, "usage": {"prompt_tokens": total, "total_tokens": total}}
    )
    fields = (*_FIELDS, (REQUEST_ID, response.id.encode("latin-1", "replace")))
    return fields, [b"".join((b'{"object":"list","data":[', data, b"],", end[1:]))]


def _shortened(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns the first dimensions of each vector, scaled to the length 1 as OpenAI does."""
    width = vectors.shape[1]
    if dimensions > width:
        raise InvalidParameter(
            f"{dimensions} is more than the {width} dimensions that this model has", "dimensions"
        )
    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    scaled: np.ndarray = cut / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
