"""Requests that would decode to millions of objects are refused first, or read off the event loop."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_control import FakeControl
from fake_models import OIP, Caller
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.dialects import json_data, off_loop
from backline.dialects.documents import read_message
from backline.dialects.input_plan import InputPlan
from backline.dialects.json_scan import MAX_DOCUMENT, MAX_KEYS, STEP, count_elements, keys_up_to, parts
from backline.dialects.off_loop import LARGE, LargeRequest
from backline.dialects.open_inference.grpc.messages import GrpcReader
from backline.dialects.open_inference.grpc.wire_format import (
    MAX_FIELDS,
    MAX_STRINGS,
    MAX_VARINTS,
    split_load,
    split_request,
)
from backline.dialects.open_inference.repository import (
    MAX_CONFIG,
    _parse_overrides,
    named_in_load,
    overrides_from_message,
)
from backline.dialects.open_inference.rest import generate
from backline.dialects.open_inference.rest.messages import RestReader
from backline.engine.engine import Engine
from backline_client.protos import message
from backline_client.values.errors import InvalidArgument, PayloadTooLarge

ROW = '{{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[{}]}}'.format(",".join("0" * 16))
MANY = MAX_KEYS + 1
OBJECT = "{{{}}}".format(",".join(f'"{number}":1' for number in range(MANY)))
OUTPUTS = "[{}]".format(",".join(f'{{"name":"{number}"}}' for number in range(MANY)))
INPUTS = "[{}]".format(",".join(f'{{"name":"{number}"}}' for number in range(MANY)))


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("infer", f'{{"parameters":{OBJECT},"inputs":[{ROW}]}}'),
        ("infer", f'{{"outputs":{OUTPUTS},"inputs":[{ROW}]}}'),
        ("infer", f'{{"inputs":{INPUTS}}}'),
        ("infer_stream", f'{{"parameters":{OBJECT},"inputs":[{ROW}]}}'),
        ("generate", OBJECT),
        ("generate_stream", f'{{"parameters":{OBJECT}}}'),
    ],
)
async def test_more_keys_than_allowed_are_refused_before_decoding(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, action: str, body: str
) -> None:
    monkeypatch.setattr(generate, "_decode", None)
    answer = await caller.post_large(f"/v2/models/add1/{action}", body.encode())

    assert answer.status == 413
    assert f"more than {MAX_KEYS} keys" in answer.error


async def test_keys_in_strings_do_not_count(caller: Caller) -> None:
    text = json.dumps(OBJECT + '\\"' * 3)
    body = f'{{"inputs":[{{"name":"INPUT0","shape":[1],"datatype":"BYTES","data":[{text}]}}]}}'

    answer = await caller.post_large("/v2/models/echo_BYTES_1/infer", body.encode())

    assert answer.status == 200
    assert answer.json["outputs"][0]["data"] == [OBJECT + '\\"' * 3]  # type: ignore[index]


async def test_a_shape_of_very_many_dimensions_is_refused(caller: Caller) -> None:
    dimensions = ",".join("1" * LARGE)
    body = f'{{"inputs":[{{"name":"INPUT0","shape":[{dimensions}],"datatype":"FP32","data":[1]}}]}}'

    answer = await caller.post_large("/v2/models/add1/infer", body.encode())

    assert (answer.status, answer.error) == (
        400,
        f"input 'INPUT0' has {LARGE} dimensions, more than the 32 supported",
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/logging"),
        ("POST", "/v2/trace/setting"),
        ("POST", "/v2/repository/index"),
    ],
)
def test_documents_without_tensors_are_small(caller: Caller, method: str, path: str) -> None:
    caller.engine.trace_control = SimpleNamespace(update=None)  # type: ignore[assignment]
    answer = caller.http(method, path, b'{"x":"%b"}' % bytes(MAX_DOCUMENT)).answer

    assert answer is not None
    assert answer.status == 413
    assert f"more than the {MAX_DOCUMENT}" in answer.error


@pytest.mark.parametrize("escape", ["", "\\u0061"])
async def test_a_configuration_in_a_load_is_small(caller: Caller, escape: str) -> None:
    caller.engine.control = FakeControl(caller.engine)
    config = (escape or "a") * (MAX_CONFIG + 6)
    answer = await caller.post_large(
        "/v2/repository/models/add1/load", f'{{"parameters":{{"config":"{config}"}}}}'.encode()
    )

    assert answer.status == 413
    assert f"more than the {MAX_CONFIG} allowed for a configuration" in answer.error


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that decoded JSON tensors."""
    threads: list[threading.Thread] = []
    decode: Callable[..., object] = json_data.read_numbers

    def watched(*values: object) -> object:
        threads.append(threading.current_thread())
        return decode(*values)

    monkeypatch.setattr(json_data, "read_numbers", watched)
    return threads


@pytest.mark.parametrize("action", ["infer", "infer_stream", "generate", "generate_stream"])
async def test_large_tensors_are_decoded_off_the_loop_on_every_route(
    caller: Caller, decoding: list[threading.Thread], action: str
) -> None:
    elements = ",".join(["7"] * LARGE)
    body = (
        f'{{"INPUT0":[{elements}]}}'
        if action.startswith("generate")
        else f'{{"inputs":[{{"name":"INPUT0","shape":[{LARGE}],"datatype":"INT32","data":[{elements}]}}]}}'
    )
    request = caller.http("POST", f"/v2/models/echo_INT32_1/{action}", body.encode())
    if action.endswith("stream"):
        await asyncio.wait_for(request.streamed.wait(), 30)
    else:
        await request.answered.wait()
        assert request.answer is not None
        assert request.answer.status == 200

    assert decoding
    assert threading.main_thread() not in decoding


@pytest.mark.parametrize(
    "given",
    [
        {"parameters": {f"p{number}": number for number in range(off_loop.MANY)}},
        {"outputs": [{"name": f"OUTPUT{number}"} for number in range(off_loop.MANY)]},
    ],
    ids=["parameters", "outputs"],
)
def test_small_requests_of_many_parts_are_read_off_the_loop(
    given: dict[str, Any],
) -> None:
    """A part costs as much as hundreds of bytes of numbers."""
    row = {"name": "INPUT0", "shape": [1], "datatype": "INT32"}
    body = json.dumps({"inputs": [{**row, "data": [1]}], **given}).encode()
    received = rpc(
        inputs=[row],
        raw_input_contents=[bytes(4)],
        outputs=given.get("outputs", []),
        parameters={key: {"int64_param": value} for key, value in given.get("parameters", {}).items()},
    )

    for read in (
        partial(RestReader(Engine()).read, body, {}, "add1", ""),
        partial(GrpcReader(Engine()).read, received, {}, "", ""),
    ):
        with pytest.raises(LargeRequest):
            read(True)
        plan, _, tensors = read(False)
        assert list(tensors) == ["INPUT0"]
        assert len(plan.parameters or plan.outputs or ()) == off_loop.MANY


@given(st.lists(st.sampled_from(["NaN", "-Infinity", '"NaN"', '"\\"Infinity"', "1", "[NaN]", '""'])))
def test_words_are_rewritten_outside_strings_only(elements: list[str]) -> None:
    text = "[" + ",".join(elements) + "]"

    rewritten = json_data.without_words(text.encode())

    kept = [element for element in elements if not element.startswith('"')]
    assert (rewritten is None) == (not any(word in element for element in kept for word in ("NaN", "Inf")))
    if rewritten is not None:
        by_word = {"NaN": "null", "-Infinity": '"-Infinity"', "[NaN]": "[null]"}
        assert (
            rewritten.decode() == "[" + ",".join(by_word.get(element, element) for element in elements) + "]"
        )


@given(st.lists(st.sampled_from(["NaN", "Infinity", "-Infinity", '"NaN"', "1", '"a"'])), st.integers(1, 20))
def test_words_are_rewritten_wherever_the_pieces_of_the_text_end(elements: list[str], step: int) -> None:
    text = ",".join(elements).encode()
    whole = json_data.without_words(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_data, "parts", partial(parts, step=step))
        assert json_data.without_words(text) == whole


@pytest.mark.parametrize("word", ["NaN", "-Infinity"])
def test_a_word_is_found_wherever_the_steps_of_the_search_end(word: str) -> None:
    for blanks in range(STEP - 12, STEP + 2):
        rewritten = json_data.without_words(b"[" + b" " * blanks + word.encode() + b"]")
        assert rewritten is not None
        assert json.loads(rewritten) == [None if word == "NaN" else word]


def test_a_large_body_is_not_copied_to_search_it_for_words() -> None:
    body = memoryview(bytearray(32 * STEP))
    tracemalloc.start()
    try:
        assert json_data.without_words(body) is None
        assert tracemalloc.get_traced_memory()[1] < 4 * STEP
    finally:
        tracemalloc.stop()


def rpc(**fields: object) -> bytes:
    return bytes(message("inference.ModelInferRequest")(model_name="add1", **fields).SerializeToString())


def unpacked(count: int) -> bytes:
    """A request whose contents are numbers that are not packed; stock clients pack them."""
    number = b"\x10\x01"  # int_contents
    contents = b"\x2a" + varint(len(number) * count) + number * count
    return rpc() + b"\x2a" + varint(len(contents)) + contents


def varint(number: int) -> bytes:
    return bytes([*(number >> shift & 127 | 128 for shift in range(0, 28, 7)), number >> 28])


@pytest.mark.parametrize(
    ("received", "told"),
    [
        (rpc(inputs=[{} for _ in range(MAX_FIELDS + 1)]), "fields"),
        (rpc(outputs=[{} for _ in range(MAX_FIELDS + 1)]), "fields"),
        (rpc(raw_input_contents=[b""] * (MAX_FIELDS + 1)), "fields"),
        (rpc(parameters={str(number): {"int64_param": 1} for number in range(MAX_FIELDS + 1)}), "fields"),
        (
            rpc(inputs=[{"parameters": {str(number): {"int64_param": 1} for number in range(MAX_FIELDS)}}]),
            "fields",
        ),
        (rpc(inputs=[{"shape": [1] * (LARGE + 1)}]), "fields"),
        (rpc(inputs=[{"contents": {"bytes_contents": [b""] * (MAX_STRINGS + 1)}}]), "bytes_contents"),
        (unpacked(MAX_STRINGS + 1), "not packed"),
        (rpc(inputs=[{"contents": {"uint_contents": [300] * (MAX_VARINTS + 1)}}]), "raw_input_contents"),
    ],
    ids=[
        "inputs",
        "outputs",
        "raw contents",
        "parameters",
        "parameters of an input",
        "shape",
        "strings",
        "numbers that are not packed",
        "packed numbers",
    ],
)
async def test_more_fields_than_allowed_are_refused(caller: Caller, received: bytes, told: str) -> None:
    call = caller.call(OIP + b"ModelInfer", received)
    await call.answered.wait()

    assert call.code == 8
    assert told in call.error


VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab":,{}[]\\\n')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a":\\'), max_size=4), inner),
)


def keys(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(keys, value.values()))
    return sum(map(keys, value)) if isinstance(value, list) else 0


@given(VALUES, st.integers(1, 9))
def test_keys_are_counted_and_strings_found(value: object, step: int) -> None:
    text = json.dumps(value).encode()

    *_, (end, found) = keys_up_to(text)
    assert (end, found) == (len(text), keys(value))
    small, large = list(parts(text, step)), list(parts(text))
    for index in range(3):
        assert np.array_equal(
            np.concatenate([part[index] for part in small]), np.concatenate([part[index] for part in large])
        )


STRINGS = st.lists(st.text(st.sampled_from('ab":,[]\\\n é')), min_size=1)


@settings(deadline=None)
@given(STRINGS, st.booleans(), st.sampled_from([None, 1]))
def test_pieces_of_strings_hold_every_element_in_order(
    strings: list[str], nested: bool, indent: int | None
) -> None:
    large = json_data.LARGE
    json_data.LARGE = 8
    try:
        text = json.dumps([strings] if nested else strings, indent=indent, ensure_ascii=False).encode()
        tensor = json_data.decode_data(InputPlan("x", "BYTES", (len(strings),)), text, "$")
    finally:
        json_data.LARGE = large

    assert [element.decode() for element in tensor.data.tolist()] == strings
    assert count_elements(text) == len(strings)


@pytest.mark.parametrize(
    "text",
    [
        "[1e308,2,-1e-308,0.5]",
        "[1e00300,1E+100]",
        "[[1e300],[2]]",
        "[1e999]",
        "[1e308,true]",
        '[1e308,"1"]',
        "[1e308,null]",
        "[1e308,{}]",
        "[" * 300 + "1e308" + "]" * 300,
        "[1.7976931348623157e308,1]",
        "[1.7976931348623159e308,1]",
        "[1e308,1e400]",
    ],
)
@pytest.mark.parametrize("kind", [list[float], list[list[float]]])
def test_numbers_near_the_limits_are_read_as_msgspec_reads_them(text: str, kind: Any) -> None:
    decoder = msgspec.json.Decoder(kind)
    try:
        expected = decoder.decode(text)
    except msgspec.DecodeError:
        with pytest.raises(msgspec.DecodeError):
            json_data.decode_list(decoder, text.encode())
    else:
        assert json_data.decode_list(decoder, text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    ['["aaaaaaaa","bbbbbbbb",1]', '["aaaaaaaa",null,"b"]', '["aaaaaaaa","bbbbbbbb"]', '["a",{"b":"c"}]'],
)
def test_non_string_within_a_piece_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_data, "LARGE", 8)
    msgspec.json.decode(text)
    with pytest.raises(InvalidArgument):
        json_data.decode_data(InputPlan("x", "BYTES", (3,)), text.encode(), "$")


LARGE_FILE = bytes(range(256)) * (1 << 17)  # 32 MiB


def load_message(files: dict[str, bytes], config: str | None = "{}") -> Any:
    asked = message("inference.RepositoryModelLoadRequest")(model_name="add1")
    for path, content in files.items():
        asked.parameters[f"file:{path}"].bytes_param = content
    if config is not None:
        asked.parameters["config"].string_param = config
    return asked


def test_the_files_of_a_load_over_grpc_are_not_copied_on_the_event_loop() -> None:
    received = load_message({"1/model.onnx": LARGE_FILE, "1/weights": LARGE_FILE[:70000]}).SerializeToString()

    began = time.thread_time()
    rest, files = split_load(received)
    overrides = overrides_from_message(
        "m", message("inference.RepositoryModelLoadRequest").FromString(rest).parameters, files
    )
    named = named_in_load(received)
    assert time.thread_time() - began < 0.01

    assert overrides is not None
    assert named == "add1"
    assert overrides.config == "{}"
    assert {path: bytes(content) for path, content in overrides.files.items()} == {
        "1/model.onnx": LARGE_FILE,
        "1/weights": LARGE_FILE[:70000],
    }


@given(
    st.dictionaries(st.text(max_size=9), st.binary(max_size=200), max_size=4),
    st.one_of(st.none(), st.text(max_size=20)),
    st.binary(max_size=3),
)
def test_separating_the_files_of_a_load_loses_nothing(
    files: dict[str, bytes], config: str | None, more: bytes
) -> None:
    kind = message("inference.RepositoryModelLoadRequest")
    asked = load_message(files, config)
    rest, found = split_load(asked.SerializeToString() + more)
    for name, content in found.items():
        assert asked.parameters[name].bytes_param == bytes(content)
        del asked.parameters[name]
    if not more:
        assert kind.FromString(bytes(rest)) == asked
    else:
        assert bytes(rest).endswith(more)


def test_a_load_request_without_its_files_is_bounded() -> None:
    large = load_message({}, "x" * (2 << 20)).SerializeToString()
    with pytest.raises(PayloadTooLarge, match="allowed for this kind of request"):
        named_in_load(large)
    many = load_message({str(number): b"" for number in range(MAX_FIELDS + 1)}).SerializeToString()
    with pytest.raises(PayloadTooLarge, match="fields"):
        named_in_load(many)


@pytest.mark.parametrize("kind", ["ModelReadyRequest", "LogSettingsRequest", "TraceSettingRequest"])
def test_a_large_message_of_a_small_kind_is_refused_before_decoding(kind: str) -> None:
    with pytest.raises(PayloadTooLarge, match=f"more than the {MAX_DOCUMENT} allowed"):
        read_message(f"inference.{kind}", b"\xfa\x01\x00" * (1 << 20))


def test_the_files_of_a_load_over_rest_are_decoded_in_pieces_and_never_copied_whole() -> None:
    body = json.dumps(
        {"parameters": {"config": "{}", "file:1/model.onnx": base64.b64encode(LARGE_FILE).decode()}}
    ).encode()
    tracemalloc.start()
    try:
        overrides = _parse_overrides("m", body)
        assert overrides is not None
        assert overrides.files["1/model.onnx"] == LARGE_FILE
        assert tracemalloc.get_traced_memory()[1] < 1.4 * len(LARGE_FILE)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("escaped", ["/", "=", "A", "+"])
@pytest.mark.parametrize("size", [(1 << 20) - 7, 3 << 18, 3000001])
def test_base64_may_have_escapes_anywhere(size: int, escaped: str) -> None:
    content = np.random.default_rng(size).bytes(size)
    text = base64.b64encode(content).decode().replace(escaped, f"\\u{ord(escaped):04x}")
    if escaped == "/":
        text = text.replace("\\u002f", "\\/", 1000)
    overrides = _parse_overrides("m", f'{{"parameters":{{"config":"","file:f":"{text}"}}}}'.encode())
    assert overrides is not None
    assert overrides.files["f"] == content


@pytest.mark.parametrize(
    "text", ["A", "====", "AA=A", "A\\\\", "\\n\\n\\n\\n", "\u00e9" * 4, "A" * (1 << 20) + "\\\\"]
)
def test_what_is_not_base64_is_named(text: str) -> None:
    with pytest.raises(InvalidArgument, match="the value of load parameter 'file:f' is not base64"):
        _parse_overrides("m", f'{{"parameters":{{"config":"","file:f":"{text}"}}}}'.encode())


@pytest.mark.parametrize(
    "first", [b"", b"\x3a\x80\x02" + bytes(256), b"\x1a\x80\x01" + b"i" * 128, b"\xfa\x01\x01x"]
)
def test_many_fields_are_refused_whatever_comes_first(first: bytes) -> None:
    with pytest.raises(PayloadTooLarge, match="fields"):
        split_request(first + b"\x3a\x00" * (MAX_FIELDS + 1))
