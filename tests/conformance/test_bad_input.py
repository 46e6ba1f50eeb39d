"""Bad HTTP requests and bad inference bodies: a prompt, correct error, and others are not disturbed."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from conformance.h1probe import Answer, HttpProbe
from conformance.running_server import Server

INFER = "/v2/models/add1/infer"
AT_ONCE = 1.0
ZEROS = [0.0] * 16


def tensor(**changes: Any) -> dict[str, Any]:
    """A valid input of add1 with changes; None omits a key."""
    whole = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": ZEROS} | changes
    return {key: value for key, value in whole.items() if value is not None}


def body(**changes: Any) -> bytes:
    """A valid request to add1 with changes."""
    whole = {"inputs": [tensor()]} | changes
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def one(**changes: Any) -> bytes:
    """A valid request with changes to its input."""
    return body(inputs=[tensor(**changes)])


def assert_serves(probe: HttpProbe) -> None:
    answer = probe.request("POST", INFER, body())
    assert answer.status == 200, answer.body[:300]
    assert json.loads(answer.body)["outputs"][0]["data"] == [1.0] * 16


@pytest.fixture(autouse=True)
def others_undisturbed(server: Server) -> Iterator[None]:
    """Asserts that an existing connection and a new one still work."""
    before = HttpProbe(server.host, server.port)
    assert_serves(before)
    yield
    assert_serves(before)
    before.close()
    after = HttpProbe(server.host, server.port)
    assert_serves(after)
    after.close()


def assert_refused(answer: Answer, *statuses: int) -> None:
    assert answer.status in statuses, f"{answer.status} {answer.body[:300]!r}"
    assert answer.seconds < AT_ONCE, f"only after {answer.seconds:.2f} s"
    assert answer.headers["content-type"].startswith("application/json")
    assert len(answer.error) < 2000, "an error must not echo the request"


WRONG_JSON = {
    "empty": b"",
    "blank": b"   ",
    "cut off": body()[:-1],
    "garbage after": body() + b"x",
    "not JSON": b"nul",
    "array": b"[]",
    "string": b'"inputs"',
    "not UTF-8": b'{"id":"\xff\xfe","inputs":[]}',
    "lone surrogate": b'{"id":"\\ud800","inputs":[]}',
    "comment": b"{} // {}",
    "key twice": body()[:-1] + b',"inputs":7}',
    "no inputs": b"{}",
    "inputs null": b'{"inputs":null}',
    "inputs object": b'{"inputs":{}}',
    "inputs empty": body(inputs=[]),
    "input a number": body(inputs=[7]),
    "input null": b'{"inputs":[null]}',
    "id a number": body(id=7),
    "parameters a list": body(parameters=[1]),
    "parameter an object": body(parameters={"key": {"a": 1}}),
    "parameter reserved": body(parameters={"triton_key": 1}),
    "outputs a string": body(outputs="OUTPUT0"),
    "output a string": body(outputs=["OUTPUT0"]),
    "output without name": body(outputs=[{}]),
    "output twice": body(outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]),
    "classification negative": body(outputs=[{"name": "OUTPUT0", "parameters": {"classification": -1}}]),
    "classification a string": body(outputs=[{"name": "OUTPUT0", "parameters": {"classification": "many"}}]),
    "binary_data a string": body(outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": "yes"}}]),
}

WRONG_INPUTS = {
    "name missing": one(name=None),
    "name a number": one(name=7),
    "name unknown": one(name="INPUT7"),
    "input twice": body(inputs=[tensor(), tensor()]),
    "input too many": body(inputs=[tensor(), tensor(name="INPUT1")]),
    "datatype missing": one(datatype=None),
    "datatype a number": one(datatype=32),
    "datatype unknown": one(datatype="FP33"),
    "datatype lower case": one(datatype="fp32"),
    "datatype another": one(datatype="INT32"),
    "datatype BYTES": one(datatype="BYTES"),
    "shape missing": one(shape=None),
    "shape a number": one(shape=16),
    "shape a string": one(shape="1,16"),
    "shape of strings": one(shape=["1", "16"]),
    "shape of fractions": one(shape=[1.5, 16]),
    "shape of booleans": one(shape=[True, 16]),
    "shape nested": one(shape=[[1, 16]]),
    "shape empty": one(shape=[]),
    "shape of another rank": one(shape=[16]),
    "shape of rank 1000": one(shape=[1] * 1000),
    "shape too wide": one(shape=[1, 17], data=[0.0] * 17),
    "shape negative": one(shape=[-1, 16]),
    "shape twice negative": one(shape=[-1, -16]),
    "shape 2^36 x 16": one(shape=[68719476736, 16], data=[1.0]),
    "shape 1 x 2^63-1": one(shape=[1, 9223372036854775807], data=[1.0]),
    "shape 2^63": one(shape=[1 << 63, 16], data=[1.0]),
    "shape 2^64": one(shape=[1 << 64, 16], data=[1.0]),
    "shape 10^400": one(shape=[10**400, 16], data=[1.0]),
    "shape 2^32 x 2^32 x 1": one(shape=[1 << 32, 1 << 32, 1], data=[1.0]),
    "shape 2^62 x 4 x 16": one(shape=[1 << 62, 4, 16], data=[1.0]),
    "shape dwarfs data": one(shape=[1000000, 16], data=[1.0]),
    "shape whose size is 2^64 + 64": one(shape=[(1 << 58) + 1, 16]),
    "data missing": one(data=None),
    "data null": one().replace(json.dumps(ZEROS).encode(), b"null"),
    "data a number": one(data=7),
    "data a string": one(data="zeros"),
    "data an object": one(data={"0": 0.0}),
    "data of strings": one(data=["0"] * 16),
    "data of booleans": one(data=[True] * 16),
    "data of objects": one(data=[{}] * 16),
    "data too few": one(data=[0.0] * 15),
    "data too many": one(data=[0.0] * 17),
    "data empty": one(data=[]),
    "data nested and flat": one(data=[ZEROS, 1.0]),
    "data and binary size": one(parameters={"binary_data_size": 64}),
    "binary size without bytes": one(data=None, parameters={"binary_data_size": 64}),
    "binary size negative": one(data=None, parameters={"binary_data_size": -64}),
    "binary size a string": one(data=None, parameters={"binary_data_size": "64"}),
    "binary size 2^64": one(data=None, parameters={"binary_data_size": 1 << 64}),
    "shared memory unknown": one(
        data=None, parameters={"shared_memory_region": "nobody", "shared_memory_byte_size": 64}
    ),
}


@pytest.mark.parametrize("case", WRONG_JSON | WRONG_INPUTS)
def test_wrong_body_gets_400_and_the_connection_goes_on(h1: HttpProbe, case: str) -> None:
    allowed = (400, 501) if case == "shared memory unknown" else (400,)
    assert_refused(h1.request("POST", INFER, (WRONG_JSON | WRONG_INPUTS)[case]), *allowed)
    assert_serves(h1)


MAY_BE_TAKEN = {
    # Triton counts the numbers and ignores the nesting.
    "data ragged": one(shape=[2, 16], data=[[0.0] * 15, [0.0] * 17]),
    "a number too large for a float": one(data=[1]).replace(b"[1]", b"[1e400" + b",0" * 15 + b"]"),
    # A missing value is NaN.
    "data of nulls": one(data=[None] * 16),
    "a number of 5000 digits": one(data=[1]).replace(b"[1]", b"[" + b"9" * 5000 + b",0" * 15 + b"]"),
    "an unknown key": body(nonsense=1),
    "an unknown key of an input": one(nonsense=1),
    "an unknown parameter": body(parameters={"nonsense": 1}),
    "negative priority": body(parameters={"priority": -1}),
    "time-out a string": body(parameters={"timeout": "soon"}),
    "sequence id": body(parameters={"sequence_id": 7}),
    "batch of none": one(shape=[0, 16], data=[]),
    "classification of more than there is": body(
        outputs=[{"name": "OUTPUT0", "parameters": {"classification": 1000000000}}]
    ),
}


@pytest.mark.parametrize("case", MAY_BE_TAKEN)
def test_odd_body_is_answered_without_500(h1: HttpProbe, case: str) -> None:
    answer = h1.request("POST", INFER, MAY_BE_TAKEN[case])
    assert answer.status < 500, answer.body[:300]
    assert answer.seconds < AT_ONCE
    assert_serves(h1)


DEPTH = 1_000_000


@pytest.mark.parametrize(
    "nested",
    [
        pytest.param(b"[" * DEPTH, id="open brackets"),
        pytest.param(b"[" * DEPTH + b"]" * DEPTH, id="brackets"),
        pytest.param(b'{"a":' * DEPTH, id="open objects"),
        pytest.param(b'{"inputs":' + b"[" * DEPTH + b"]" * DEPTH + b"}", id="inputs"),
        pytest.param(one(data=7).replace(b'"data": 7', b'"data":' + b"[" * DEPTH + b"]" * DEPTH), id="data"),
        pytest.param(one(data=7).replace(b'"data": 7', b'"data":' + b"[" * DEPTH), id="data cut off"),
        pytest.param(
            body(id=7).replace(b'"id": 7', b'"parameters":' + b'{"a":' * DEPTH + b"1" + b"}" * DEPTH),
            id="parameters",
        ),
        pytest.param(b'{"nonsense":' + b"[" * DEPTH + b"]" * DEPTH + b"," + body()[1:], id="unknown key"),
        pytest.param(
            one(shape=7).replace(b'"shape": 7', b'"shape":' + b"[" * 2000 + b"]" * 2000), id="shape 2000 deep"
        ),
        pytest.param(
            one(data=7).replace(b'"data": 7', b'"data":' + b"[" * 900 + b"1" + b"]" * 900), id="data 900 deep"
        ),
    ],
)
def test_deep_nesting_gets_400(h1: HttpProbe, nested: bytes) -> None:
    h1.timeout = 10
    assert_refused(h1.request("POST", INFER, nested), 400)
    assert_serves(h1)


# Binary tensors


@dataclass(frozen=True)
class Binary:
    """A request with binary tensors. `header` overrides the correct Inference-Header-Content-Length."""

    size: Any = 64
    data: bytes = bytes(64)
    header: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    def send(self, probe: HttpProbe) -> Answer:
        document = one(data=None, parameters={"binary_data_size": self.size}, **self.changes)
        header = str(len(document)) if self.header is None else self.header
        return probe.request("POST", INFER, document + self.data, {"Inference-Header-Content-Length": header})


WRONG_BINARY = {
    "fewer bytes than said": Binary(data=bytes(60)),
    "more bytes than said": Binary(data=bytes(68)),
    "no bytes": Binary(data=b""),
    "size smaller than shape": Binary(size=60, data=bytes(60)),
    "size larger than shape": Binary(size=68, data=bytes(68)),
    "size negative": Binary(size=-64),
    "size zero": Binary(size=0, data=b""),
    "size a fraction": Binary(size=64.5),
    "size null": Binary(size=None),
    "size 2^63": Binary(size=1 << 63),
    "size 2^64": Binary(size=1 << 64),
    "header -1": Binary(header="-1"),
    "header a word": Binary(header="all"),
    "header 1e2": Binary(header="1e2"),
    "header with plus": Binary(header="+120"),
    "header with underscore": Binary(header="1_2"),
    "header too short": Binary(header="10"),
    "header beyond the body": Binary(header="99999999"),
    "header 2^64": Binary(header=str(1 << 64)),
    "header 2^64 + 120": Binary(header=str((1 << 64) + 120)),
    "header of 5000 digits": Binary(header="9" * 5000),
    "header list": Binary(header="120, 120"),
    "raw with a byte too few": Binary(header="0", data=bytes(63)),
    "overflow shape": Binary(changes={"shape": [68719476736, 16]}),
    "overflow to the same size": Binary(changes={"shape": [(1 << 58) + 1, 16]}),
    "wrong datatype": Binary(changes={"datatype": "INT32"}),
    "BYTES": Binary(changes={"datatype": "BYTES"}),
}


@pytest.mark.parametrize("case", WRONG_BINARY)
def test_wrong_binary_request_gets_400(h1: HttpProbe, case: str) -> None:
    assert_refused(WRONG_BINARY[case].send(h1), 400)
    assert_serves(h1)


def test_valid_binary_request(h1: HttpProbe) -> None:
    answer = Binary().send(h1)
    assert answer.status == 200, answer.body[:300]
    assert json.loads(answer.body)["outputs"][0]["data"] == [1.0] * 16


@pytest.mark.parametrize(
    ("size", "statuses"), [(0, (400,)), (63, (400,)), (64, (200,)), (65, (400,)), (1 << 20, (200, 400))]
)
def test_raw_binary_request(h1: HttpProbe, size: int, statuses: tuple[int, ...]) -> None:
    answer = h1.request("POST", INFER, bytes(size), {"Inference-Header-Content-Length": "0"})
    assert answer.status in statuses, answer.body[:300]
    if answer.status != 200:
        assert_refused(answer, 400)
    assert_serves(h1)


# Names and routes


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("POST", "/v2/models/nobody/infer", (404,)),
        ("POST", "/v2/models/add1/versions/99/infer", (404,)),
        ("POST", "/v2/models/add1/versions/one/infer", (400, 404)),
        ("POST", "/v2/models/add1/versions/-1/infer", (400, 404)),
        ("POST", "/v2/models/%FF%FE/infer", (400, 404)),
        ("POST", "/v2/models/%zz/infer", (400, 404)),
        ("POST", "/v2/models/a%00b/infer", (400, 404)),
        ("POST", "/v2/models/..%2F..%2Fetc%2Fpasswd/infer", (400, 404)),
        ("POST", "/v2/models/../../etc/passwd", (400, 404)),
        ("POST", "/v2/models//infer", (400, 404)),
        ("POST", "/v2/models/" + "x" * 5000 + "/infer", (400, 404, 414)),
        ("POST", "/v2/nothing", (404,)),
        ("GET", "/v2/models/nobody", (404,)),
        ("GET", "/v2/models/nobody/ready", (400, 404)),
        ("GET", "/v2/models/nobody/config", (400, 404)),
        ("GET", "/v2/models/nobody/stats", (400, 404)),
        ("GET", INFER, (405,)),
        ("DELETE", "/v2/models/add1", (405,)),
        ("BREW", "/v2/models/add1", (400, 405, 501)),
    ],
)
def test_unknown_names_and_routes(h1: HttpProbe, method: str, path: str, statuses: tuple[int, ...]) -> None:
    assert_refused(h1.request(method, path, body() if method == "POST" else None), *statuses)


CONNECT_FIELDS = [
    (),
    ("Connection: close",),
    ("Content-Encoding: gzip",),
    ("Transfer-Encoding: chunked",),
    ("Upgrade: h2c",),
]


@pytest.mark.parametrize("fields", CONNECT_FIELDS, ids=str)
@pytest.mark.parametrize("target", ["localhost:80", "/", "/v2"])
@pytest.mark.parametrize("pipelined", [False, True], ids=["first", "pipelined"])
def test_connect_is_refused(h1: HttpProbe, pipelined: bool, target: str, fields: tuple[str, ...]) -> None:
    first = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" if pipelined else b""
    h1.send(first + head(*fields, line=f"CONNECT {target} HTTP/1.1"))
    statuses = [answer.status for answer in h1.answers()]
    assert statuses, "no answer"
    assert statuses[:-1] == [200] * pipelined
    assert statuses[-1] in (400, 404, 405, 501)


def test_unknown_output_is_refused(h1: HttpProbe) -> None:
    assert_refused(h1.request("POST", INFER, body(outputs=[{"name": "OUTPUT7"}])), 400, 404)
    assert_serves(h1)


# Size, compression and time


def head(*fields: str, line: str = f"POST {INFER} HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: x", *fields]).encode() + b"\r\n\r\n"


def final(probe: HttpProbe) -> Answer:
    answer = probe.read()
    assert answer is not None, "closed without an answer"
    return answer


@pytest.mark.parametrize("length", [(64 << 20) + 1, 10 << 30, (1 << 63) - 1])
def test_announced_body_beyond_the_limit_gets_413_before_it_is_sent(h1: HttpProbe, length: int) -> None:
    h1.send(head(f"Content-Length: {length}"))
    assert_refused(final(h1), 413)


def test_expectation_of_a_body_beyond_the_limit_is_not_continued(h1: HttpProbe) -> None:
    h1.send(head(f"Content-Length: {1 << 30}", "Expect: 100-continue"))
    h1.socket.settimeout(2)
    first = h1.socket.recv(4096)
    assert first.startswith(b"HTTP/1.1 413 ")


def test_unknown_expectation_is_answered(h1: HttpProbe) -> None:
    h1.send(head(f"Content-Length: {len(body())}", "Expect: the-unexpected") + body())
    assert final(h1).status in (200, 417)


def test_chunked_body_beyond_the_limit_gets_413(h1: HttpProbe, server: Server) -> None:
    h1.timeout = 10
    h1.send(head("Transfer-Encoding: chunked"))
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    for _ in range(70):
        h1.send(chunk)
    assert final(h1).status == 413


def bomb(wrapper: int) -> bytes:
    """256 MiB of blanks, as gzip (wrapper 31) or zlib (15)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wrapper)
    blank = b" " * (1 << 20)
    return b"".join(packer.compress(blank) for _ in range(256)) + packer.flush()


@pytest.mark.parametrize(("encoding", "wrapper"), [("gzip", 31), ("deflate", 15)])
def test_compressed_bomb_gets_413_and_no_memory(
    h1: HttpProbe, server: Server, encoding: str, wrapper: int
) -> None:
    packed = bomb(wrapper)
    process = psutil.Process(server.pid) if server.pid else None
    before = process.memory_info().rss if process else 0
    answer = h1.request("POST", INFER, packed, {"Content-Encoding": encoding})
    assert answer.status == 413, answer.body[:300]
    assert answer.error
    if process:
        assert process.memory_info().rss - before < 100 << 20


PACKED = gzip.compress(body())


@pytest.mark.parametrize(
    ("encoding", "packed", "statuses"),
    [
        pytest.param("gzip", PACKED, (200,), id="gzip"),
        pytest.param("deflate", zlib.compress(body()), (200,), id="deflate"),
        pytest.param("gzip", body(), (400,), id="not gzip"),
        pytest.param("deflate", b"\xff" * 100, (400,), id="not deflate"),
        pytest.param("gzip", PACKED[:-9], (400,), id="gzip cut off"),
        pytest.param("gzip", PACKED[:-5] + b"\0" + PACKED[-4:], (400,), id="gzip with wrong checksum"),
        pytest.param("gzip", b"", (400,), id="empty gzip"),
        pytest.param("gzip", PACKED + b"garbage", (200, 400), id="garbage after gzip"),
        pytest.param("gzip, gzip", gzip.compress(PACKED), (200, 400, 415, 501), id="gzip twice"),
        pytest.param(", ".join(["gzip"] * 1000), PACKED, (400, 415, 501), id="gzip 1000 times"),
        pytest.param("br", PACKED, (400, 415, 501), id="unknown"),
        pytest.param("identity", body(), (200,), id="identity"),
    ],
)
def test_compressed_body(h1: HttpProbe, encoding: str, packed: bytes, statuses: tuple[int, ...]) -> None:
    answer = h1.request("POST", INFER, packed, {"Content-Encoding": encoding})
    assert answer.status in statuses, answer.body[:300]
    if answer.status != 200:
        assert_refused(answer, *statuses)


@pytest.mark.parametrize(
    ("request_head", "statuses"),
    [
        pytest.param(head(*[f"X-{number}: y" for number in range(1000)]), (431,), id="1000 fields"),
        pytest.param(head("X-Long: " + "y" * 100_000), (431,), id="field of 100 KB"),
        pytest.param(head(line="GET /" + "y" * 100_000 + " HTTP/1.1"), (414, 431), id="target of 100 KB"),
    ],
)
def test_head_beyond_the_limit(h1: HttpProbe, request_head: bytes, statuses: tuple[int, ...]) -> None:
    h1.send(request_head)
    assert_refused(final(h1), *statuses)


def test_endless_head_is_ended(h1: HttpProbe) -> None:
    h1.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Y: z\r\n" * 20_000)
    assert final(h1).status == 431
    assert h1.read() is None


# Cut off, slow and half-open


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"P", id="one byte"),
        pytest.param(b"POST /v2", id="half a line"),
        pytest.param(head("Content-Length: 1000")[:-2], id="half a head"),
        pytest.param(head("Content-Length: 1000") + bytes(100), id="half a body"),
        pytest.param(head("Transfer-Encoding: chunked") + b"64\r\n" + bytes(10), id="half a chunk"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM", id="half a preface"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04", id="half a frame"),
    ],
)
def test_half_open_connection_is_closed_at_once(server: Server, start: bytes) -> None:
    connection = socket.create_connection((server.host, server.port), timeout=AT_ONCE)
    with connection:
        connection.sendall(start)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        assert b" 200 " not in received


def test_whole_request_on_a_half_open_connection_is_answered(server: Server) -> None:
    probe = HttpProbe(server.host, server.port)
    probe.send(head(f"Content-Length: {len(body())}") + body())
    probe.socket.shutdown(socket.SHUT_WR)
    assert final(probe).status == 200
    probe.close()


@pytest.mark.parametrize(
    "start", [head("Content-Length: 1000"), head("Content-Length: 1000")[:30]], ids=["body", "head"]
)
def test_reset_connection_leaves_no_state(server: Server, start: bytes) -> None:
    for _ in range(20):
        connection = socket.create_connection((server.host, server.port))
        connection.sendall(start)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_slow_body_holds_nobody_up(server: Server) -> None:
    slow = HttpProbe(server.host, server.port)
    slow.send(head(f"Content-Length: {len(body())}"))
    for at in range(20):
        slow.send(body()[at : at + 1])
        other = HttpProbe(server.host, server.port)
        answer = other.request("POST", INFER, body())
        assert answer.status == 200
        assert answer.seconds < 5  # the slow body ends only after the loop
        other.close()
    slow.send(body()[20:])
    assert final(slow).status == 200
    slow.close()


def test_request_in_single_bytes_is_answered(h1: HttpProbe) -> None:
    for byte in head(f"Content-Length: {len(body())}") + body():
        h1.send(bytes([byte]))
    assert final(h1).status == 200
