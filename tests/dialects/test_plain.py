"""Plain HTTP for people: inputs by name as JSON, forms or raw bodies, and files as responses."""

from __future__ import annotations

import io
import json
import math
import wave

import msgspec
import numpy as np
import pytest
from fake_models import Caller, HttpAnswer, add_model
from PIL import Image

from backline.dialects.application import build_application
from backline.dialects.bodies.json_text import MAX_JSON, MAX_LISTS
from backline.dialects.bodies.media import MAX_PADDING
from backline.dialects.bodies.values import value_of
from backline.dialects.input_plan import MAX_BYTES_ELEMENTS
from backline.dialects.json_scan import MAX_KEYS
from backline.dialects.off_loop import PIECE
from backline.engine.engine import Engine
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor

ROW = [float(n) for n in range(16)]


def ask(
    caller: Caller, model: str, body: bytes | object, kind: str = "application/json", accept: str = ""
) -> HttpAnswer:
    headers = {b"content-type": kind.encode()} | ({b"accept": accept.encode()} if accept else {})
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return caller.http("POST", f"/models/{model}", data, headers).answer


def echo(spec: TensorSpec, *, max_batch_size: int = 0) -> Caller:
    engine = Engine()
    output = TensorSpec("y", spec.datatype, spec.shape, json=spec.json)
    add_model(
        engine, "echo", [spec], [output], lambda one: {"y": one[spec.name]}, max_batch_size=max_batch_size
    )
    engine.refresh()
    engine.started()
    return Caller(engine, build_application(engine))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def form(*parts: tuple[str, str, bytes], boundary: str = "b") -> bytes:
    """Parts as name with attributes, content type, and contents."""
    found = b""
    for name, kind, body in parts:
        line = f"content-type: {kind}\r\n" if kind else ""
        head = f"--{boundary}\r\ncontent-disposition: form-data; name={name}\r\n{line}\r\n"
        found += head.encode() + body + b"\r\n"
    return found + f"--{boundary}--\r\n".encode()


def test_one_item_is_answered_without_a_batch_dimension(caller: Caller) -> None:
    answer = ask(caller, "add1", {"INPUT0": ROW})
    assert (answer.status, answer.json) == (200, {"OUTPUT0": [n + 1 for n in ROW]})
    assert answer.fields[b"backline-model-version"] == b"2"


def test_a_batch_is_answered_as_a_batch(caller: Caller) -> None:
    assert ask(caller, "add1", {"INPUT0": [ROW, ROW]}).json == {"OUTPUT0": [[n + 1 for n in ROW]] * 2}


def test_a_version_can_be_named(caller: Caller) -> None:
    answer = caller.post("/models/add1/versions/1", json.dumps({"INPUT0": ROW}).encode())
    assert answer.fields[b"backline-model-version"] == b"1"


def test_curl_that_labels_json_as_a_form_is_understood(caller: Caller) -> None:
    assert ask(caller, "pair", {"A": [1, 2], "B": [3, 4]}, "application/x-www-form-urlencoded").json == {
        "SUM": [4, 6],
        "DIFFERENCE": [-2, -2],
    }


@pytest.mark.parametrize("datatype", list(DataType), ids=lambda datatype: datatype.name)
def test_every_datatype_comes_back_as_it_was_sent(datatype: DataType) -> None:
    values = {"BOOL": [True, False], "BYTES": ["a", {"b64": "/w=="}]}.get(datatype.name, [1, 2])
    answer = ask(echo(TensorSpec("x", datatype, (-1,))), "echo", {"x": values})
    assert (answer.status, answer.json) == (200, {"y": values})


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_nan_and_infinity_are_strings(datatype: str) -> None:
    values = ["NaN", "Infinity", "-Infinity", 0.5]
    caller = echo(TensorSpec("x", DataType[datatype], (-1,)))
    assert ask(caller, "echo", {"x": values}).json == {"y": values}


LARGE_SHAPES = [(3 * PIECE,), (1, 3 * PIECE), (PIECE + 1, 1, 3), (2, 2, PIECE), (3, PIECE + 1)]


@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_a_large_output_is_encoded_in_pieces(shape: tuple[int, ...]) -> None:
    numbers = (np.arange(math.prod(shape)) % 100).reshape(shape)
    texts = np.array([b"%d" % number for number in numbers.flat], object).reshape(shape)
    damaged = numbers.astype(np.float32)
    damaged.flat[-1] = np.nan

    whole = value_of(Tensor("x", DataType.INT64, shape, numbers))
    of_texts = value_of(Tensor("x", DataType.BYTES, shape, texts))
    with_nan = value_of(Tensor("x", DataType.FP32, shape, damaged))

    assert all(isinstance(one, msgspec.Raw) for one in (whole, of_texts, with_nan))
    assert json.loads(bytes(whole)) == numbers.tolist()
    assert json.loads(bytes(of_texts)) == numbers.astype(str).tolist()
    assert np.array(json.loads(bytes(with_nan)), object).flat[-1] == "NaN"


def test_json_documents_are_sent_as_they_are() -> None:
    caller = echo(TensorSpec("x", DataType.BYTES, (1,), json="object"))
    assert ask(caller, "echo", {"x": {"notes": [60, 64]}}).json == {"y": [{"notes": [60, 64]}]}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([[1, 2], [3]], "a list of 1 where a list of 2 was expected"),
        ([1.5], "a number with a fraction where INT8 needs a whole number"),
        ([300], "a number that INT8 cannot hold"),
        (["1"], "a string where INT8 needs a whole number"),
        ([True], "true or false where INT8 needs"),
        (None, "null where INT8 needs"),
    ],
)
def test_a_wrong_value_is_named(value: object, error: str) -> None:
    answer = ask(echo(TensorSpec("x", DataType.INT8, (-1,))), "echo", {"x": value})
    assert answer.status == 400
    assert error in answer.error


def test_a_misspelt_input_gets_a_suggestion(caller: Caller) -> None:
    assert "did you mean 'INPUT0'?" in ask(caller, "add1", {"INPUT": ROW}).error


@pytest.mark.parametrize("body", [b"[1]", b"7", b"{", b"\xff", b"[" * 5000])
def test_json_that_is_no_object_is_refused(caller: Caller, body: bytes) -> None:
    assert ask(caller, "add1", body).status == 400


def test_a_form_has_a_part_per_input(caller: Caller) -> None:
    body = form(
        ("A", "", b"[1, 2]"), ('B; filename="b.npy"', "application/octet-stream", npy(np.int32([3, 4])))
    )
    assert ask(caller, "pair", body, "multipart/form-data; boundary=b").json["SUM"] == [4, 6]


def test_a_file_becomes_the_only_element_of_bytes() -> None:
    caller = echo(TensorSpec("x", DataType.BYTES, (1,)))
    body = form(('x; filename="song.ogg"', "audio/ogg", b"\0\r\n--\xff"))
    answer = ask(caller, "echo", body, "multipart/form-data; boundary=b", "application/octet-stream")
    assert (answer.status, answer.body) == (200, b"\0\r\n--\xff")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b\r\n",
        b"--b\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--",
    ],
)
def test_a_malformed_form_is_refused(caller: Caller, body: bytes) -> None:
    assert ask(caller, "pair", body, "multipart/form-data; boundary=b").status == 400


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "", "application/json"])
def test_a_file_without_its_type_gets_advice(caller: Caller, kind: str) -> None:
    answer = ask(caller, "add1", b"OggS\0\x02", kind)
    assert answer.status == 400
    assert "such as application/octet-stream" in answer.json["error"]
    assert "octet-stream" not in ask(caller, "add1", b'{"INPUT0": [', kind).json["error"]


def test_raw_numbers_are_read_by_the_shape(caller: Caller) -> None:
    answer = ask(caller, "add1", np.float32(ROW).tobytes(), "application/octet-stream", "application/x-npy")
    assert np.load(io.BytesIO(answer.body)).tolist() == [[n + 1 for n in ROW]]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (npy(np.zeros(16)), "holds float64, but the input takes float32"),
        (npy(np.zeros((1, 16), np.float32))[:-1], "do not fit its shape"),
        (b"\x93NUMPY", "malformed"),
        (npy(np.array([None] * 3, object))[:200], "Python objects"),
    ],
)
def test_an_unsuitable_npy_file_is_refused(caller: Caller, body: bytes, error: str) -> None:
    answer = ask(caller, "add1", body, "application/x-npy")
    assert answer.status == 400
    assert error in answer.error


def raw_npy(datatype: str, shape: str, data: bytes = b"") -> bytes:
    """A file with any header: numpy would not write some of these."""
    header = f"{{'descr': {datatype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("datatype", "body", "error"),
    [
        # Elements without bytes: a body of 70 bytes would become gigabytes.
        (DataType.BYTES, raw_npy("'|S0'", "(1000000000,)"), "elements of 0 bytes"),
        (DataType.BYTES, raw_npy("'<U0'", "(1000000000,)"), "elements of 0 bytes"),
        (DataType.BYTES, raw_npy("'<U1'", "(1,)", b"\xff" * 4), "not Unicode"),
        (DataType.BYTES, raw_npy("'<U1'", "(1,)", b"\x00\xd8\x00\x00"), "not Unicode"),
        (DataType.FP32, raw_npy("'<f4'", f"(0, {10**30})"), "malformed"),
        (DataType.FP32, raw_npy("'<f4'", f"({'1,' * 65})", bytes(4)), "malformed"),
        (DataType.FP32, raw_npy("'<f4'", "(True,)", bytes(4)), "malformed"),
        (DataType.FP32, raw_npy("('<f4', (2,))", "(1,)", bytes(8)), "holds Python objects"),
        (DataType.FP32, raw_npy("-" * 9000, "(1,)"), "malformed"),
        (DataType.FP32, raw_npy("(" * 9000, "(1,)"), "malformed"),
    ],
    ids=["bytes", "text", "code point", "surrogate", "huge", "rank", "flag", "nested", "minuses", "brackets"],
)
def test_a_hostile_npy_file_is_refused(datatype: DataType, body: bytes, error: str) -> None:
    answer = ask(echo(TensorSpec("x", datatype, (-1,))), "echo", body, "application/x-npy")
    assert (answer.status, error in answer.error) == (400, True), answer.error


@pytest.mark.parametrize("type_", ["S1", "U1"])
async def test_an_npy_file_with_too_many_strings_is_refused(type_: str) -> None:
    caller = echo(TensorSpec("x", DataType.BYTES, (-1,)))
    body = npy(np.zeros(MAX_BYTES_ELEMENTS + 1, type_))
    request = caller.http("POST", "/models/echo", body, {b"content-type": b"application/x-npy"})
    await request.answered.wait()

    assert request.answer is not None
    assert request.answer.status == 413
    assert f"more than the {MAX_BYTES_ELEMENTS} allowed" in request.answer.error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (json.dumps(dict.fromkeys(map(str, range(MAX_KEYS + 1)), 1)), f"more than {MAX_KEYS} keys"),
        (f"[{'[],' * MAX_LISTS}1]", f"{MAX_LISTS + 1} lists"),
        (f'"{" " * MAX_JSON}"', f"{MAX_JSON + 2} bytes"),
    ],
    ids=["keys", "lists", "bytes"],
)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
async def test_json_that_is_costly_to_decode_is_refused(
    caller: Caller, kind: str, text: str, error: str
) -> None:
    body = text.encode()
    body = b'{"A":%b}' % body if kind == "application/json" else form(("A", "application/json", body))
    if error.endswith("bytes") and kind == "application/json":
        error = f"{len(body)} bytes"
    request = caller.http("POST", "/models/pair", body, {b"content-type": kind.encode()})
    await request.answered.wait()

    assert request.answer is not None
    assert request.answer.status == 413
    assert error in request.answer.error


def test_bytes_are_not_padded_to_a_huge_npy_file() -> None:
    caller = echo(TensorSpec("x", DataType.BYTES, (-1,)))
    longest = MAX_PADDING // 1000
    answer = ask(caller, "echo", {"x": ["a" * longest, *[""] * 1001]}, accept="application/x-npy")
    padded = ask(caller, "echo", {"x": ["a" * longest, *[""] * 999]}, accept="application/x-npy")

    assert answer.status == 406
    assert f"each element would be padded to {longest} bytes" in answer.error
    assert np.load(io.BytesIO(padded.body)).nbytes == 1000 * longest


def test_a_body_of_a_type_that_fits_no_input_is_refused(caller: Caller) -> None:
    assert ask(caller, "add1", b"x", "audio/ogg").status == 415
    assert ask(caller, "pair", b"x", "application/octet-stream").status == 415


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 1), (3, 2, 3), (3, 2, 4), (1, 3, 2, 3)])
def test_an_image_is_sent_as_png(shape: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    caller = echo(TensorSpec("x", DataType.UINT8, (-1,) * len(shape)))
    answer = ask(caller, "echo", npy(pixels), "application/x-npy", "image/png")
    assert answer.fields[b"content-type"] == b"image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.body))).ravel(), pixels.ravel())


def test_a_sound_is_sent_as_wav() -> None:
    samples = np.int16([0, 1000, -1000])
    caller = echo(TensorSpec("x", DataType.INT16, (1, -1)))
    answer = ask(caller, "echo", {"x": [samples.tolist()]}, accept="audio/wav; rate=8000")
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (8000, 1)
        assert sound.readframes(3) == samples.tobytes()


@pytest.mark.parametrize(
    ("accept", "error"),
    [
        ("audio/wav", "UINT8"),
        ("application/pdf", "matches none of the types"),
        ("application/x-npy; output=z", "expected one of y"),
    ],
)
def test_an_answer_that_cannot_be_sent_as_asked_is_refused(accept: str, error: str) -> None:
    answer = ask(echo(TensorSpec("x", DataType.UINT8, (-1,))), "echo", {"x": [1]}, accept=accept)
    assert answer.status in (400, 406)
    assert error in answer.error


def test_one_of_several_outputs_is_chosen_by_accept(caller: Caller) -> None:
    inputs = {"A": [1, 2], "B": [3, 4]}
    assert ask(caller, "pair", inputs, accept="application/x-npy").status == 406
    answer = ask(caller, "pair", inputs, accept="application/x-npy; output=DIFFERENCE")
    assert np.load(io.BytesIO(answer.body)).tolist() == [-2, -2]


def test_what_browsers_and_curl_accept_is_json(caller: Caller) -> None:
    for accept in ("*/*", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"):
        assert (
            ask(caller, "add1", {"INPUT0": ROW}, accept=accept).fields[b"content-type"] == b"application/json"
        )
