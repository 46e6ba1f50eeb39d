"""Shared memory, and the settings of traces and the log."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from multiprocessing import shared_memory
from typing import Any

from scenarios.scenario import Seen, scenario
from scenarios.session import Session


@contextlib.contextmanager
def _memory(content: bytes) -> Iterator[str]:
    """The key of a new shared memory object that holds `content`."""
    memory = shared_memory.SharedMemory(f"scenario{secrets.token_hex(6)}", create=True, size=len(content))
    try:
        memory.buf[: len(content)] = content
        yield f"/{memory.name.lstrip('/')}"
    finally:
        memory.close()
        with contextlib.suppress(FileNotFoundError):
            memory.unlink()


def _hide(of: Any, key: str) -> Any:
    """The same data without the key, which is random."""
    if isinstance(of, dict):
        return {name: _hide(value, key) for name, value in of.items()}
    if isinstance(of, list):
        return [_hide(value, key) for value in of]
    return of.replace(key, "/key") if isinstance(of, str) else of


_AUDIO = b"\x00\x00\x80\x3f" * 8


@scenario("http")
def shared_memory_over_http(session: Session) -> Seen:
    base = "/v2/systemsharedmemory"

    def infer(name: str, offset: int = 0, size: int = 8, **output: Any) -> Seen:
        where = {
            "shared_memory_region": name,
            "shared_memory_byte_size": size,
            "shared_memory_offset": offset,
        }
        given = {"name": "AUDIO", "datatype": "FP32", "shape": [1, 2], "parameters": where}
        outputs = {"outputs": [{"name": "LOUDER", "parameters": output}]} if output else {}
        return session.wire.http("POST", "/v2/models/gain/infer", {"inputs": [given], **outputs})

    def register(name: str, **body: Any) -> Seen:
        return session.wire.http("POST", f"{base}/region/{name}/register", body)

    into = {"shared_memory_region": "one", "shared_memory_offset": 16}
    with _memory(_AUDIO) as key:
        seen = {
            "no region": session.wire.http("GET", f"{base}/status"),
            "status of an unknown region": session.wire.http("GET", f"{base}/region/one/status"),
            "infer with an unknown region": infer("one"),
            "register": register("one", key=key, offset=0, byte_size=32),
            "register again": register("one", key=key, offset=0, byte_size=32),
            "register a key that is not there": register("two", key="/nothing", offset=0, byte_size=32),
            "register without a key": register("two", offset=0, byte_size=32),
            "register without a size": register("two", key=key, offset=0),
            "register beyond the end": register("four", key=key, offset=16, byte_size=4096),
            "register a size of zero": register("five", key=key, offset=0, byte_size=0),
            "register a text as size": register("six", key=key, offset=0, byte_size="8"),
            "register without JSON": session.wire.http("POST", f"{base}/region/seven/register", b"nope"),
            "status": session.wire.http("GET", f"{base}/status"),
            "status of a region": session.wire.http("GET", f"{base}/region/one/status"),
            "infer": infer("one"),
            "infer at an offset": infer("one", 24),
            "infer beyond the end": infer("one", 28),
            "infer with too small a size": infer("one", 0, 4),
            "infer into it": infer("one", 0, 8, **into, shared_memory_byte_size=8),
            "infer into too little": infer("one", 0, 8, **into, shared_memory_byte_size=4),
            "infer into an unknown region": infer(
                "one", 0, 8, shared_memory_region="nobody", shared_memory_byte_size=8
            ),
            "infer without a size": session.wire.http(
                "POST",
                "/v2/models/gain/infer",
                {
                    "inputs": [
                        {
                            "name": "AUDIO",
                            "datatype": "FP32",
                            "shape": [1, 2],
                            "parameters": {"shared_memory_region": "one"},
                        }
                    ]
                },
            ),
            "unregister": session.wire.http("POST", f"{base}/region/one/unregister"),
            "unregister again": session.wire.http("POST", f"{base}/region/one/unregister"),
            "unregister all": session.wire.http("POST", f"{base}/unregister"),
            "no region at the end": session.wire.http("GET", f"{base}/status"),
        }
    return _hide(seen, key)


@scenario("grpc")
def shared_memory_over_grpc(session: Session) -> Seen:
    def infer(name: str, offset: int = 0, size: int = 8) -> Seen:
        where = {
            "shared_memory_region": {"string_param": name},
            "shared_memory_byte_size": {"int64_param": size},
            "shared_memory_offset": {"int64_param": offset},
        }
        given = {"name": "AUDIO", "datatype": "FP32", "shape": [1, 2], "parameters": where}
        return session.wire.rpc("ModelInfer", {"model_name": "gain", "inputs": [given]})

    def register(name: str, key: str, **fields: Any) -> Seen:
        return session.wire.rpc("SystemSharedMemoryRegister", {"name": name, "key": key, **fields})

    def call(what: str, name: str = "") -> Seen:
        return session.wire.rpc(f"SystemSharedMemory{what}", {"name": name})

    with _memory(_AUDIO) as key:
        seen = {
            "no region": call("Status"),
            "status of an unknown region": call("Status", "one"),
            "infer with an unknown region": infer("one"),
            "register": register("one", key, byte_size=32),
            "register again": register("one", key, byte_size=32),
            "register a key that is not there": register("two", "/nothing", byte_size=32),
            "register without a name": register("", key, byte_size=32),
            "register beyond the end": register("two", key, offset=16, byte_size=4096),
            "status": call("Status"),
            "status of a region": call("Status", "one"),
            "infer": infer("one"),
            "infer beyond the end": infer("one", 28),
            "infer with too small a size": infer("one", 0, 4),
            "unregister": call("Unregister", "one"),
            "unregister again": call("Unregister", "one"),
            "unregister all": call("Unregister"),
        }
    return _hide(seen, key)


@scenario("http")
def shared_memory_of_gpus_over_http(session: Session) -> Seen:
    base = "/v2/cudasharedmemory"
    body = {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 8}
    return {
        "status": session.wire.http("GET", f"{base}/status"),
        "status of a region": session.wire.http("GET", f"{base}/region/one/status"),
        "register": session.wire.http("POST", f"{base}/region/one/register", body),
        "unregister": session.wire.http("POST", f"{base}/region/one/unregister"),
        "unregister all": session.wire.http("POST", f"{base}/unregister"),
    }


@scenario("grpc")
def shared_memory_of_gpus_over_grpc(session: Session) -> Seen:
    body = {"name": "one", "raw_handle": "AAAA", "device_id": 0, "byte_size": 8}
    return {
        "status": session.wire.rpc("CudaSharedMemoryStatus", {}),
        "status of a region": session.wire.rpc("CudaSharedMemoryStatus", {"name": "one"}),
        "register": session.wire.rpc("CudaSharedMemoryRegister", body),
        "unregister": session.wire.rpc("CudaSharedMemoryUnregister", {"name": "one"}),
        "unregister all": session.wire.rpc("CudaSharedMemoryUnregister", {}),
    }


@scenario("http")
def trace_settings_over_http(session: Session) -> Seen:
    path = "/v2/trace/setting"
    bodies = {
        "a rate": {"trace_rate": "200"},
        "a rate that is a number": {"trace_rate": 300},
        "a rate that is no number": {"trace_rate": "often"},
        "a count": {"trace_count": "5"},
        "a count below minus one": {"trace_count": "-2"},
        "a log frequency": {"log_frequency": "7"},
        "a level": {"trace_level": ["TENSORS"]},
        "a level that is not there": {"trace_level": ["ALL"]},
        "a level that is no list": {"trace_level": "OFF"},
        "no level": {"trace_level": ["OFF"]},
        "the mode that it has": {"trace_mode": "triton"},
        "another mode": {"trace_mode": "opentelemetry"},
        "a file": {"trace_file": "elsewhere"},
        "an unknown setting": {"colour": "red"},
        "nothing": {},
        "no JSON": b"nope",
        "an empty body": b"",
        "a rate below zero": {"trace_rate": "-5"},
        "back to the start": {
            "trace_rate": None,
            "trace_count": None,
            "log_frequency": None,
            "trace_level": None,
        },
    }
    model = "/v2/models/gain/trace/setting"
    return {
        "before": session.wire.http("GET", path),
        **session.wire.post(path, bodies),
        "of a model": session.wire.http("GET", model),
        "a rate of a model": session.wire.http("POST", model, {"trace_rate": "9"}),
        "of a model, with a rate": session.wire.http("GET", model),
        "the rate of all": session.wire.http("GET", path),
        "no rate of the model": session.wire.http("POST", model, {"trace_rate": None}),
        "of an unknown model": session.wire.http("GET", "/v2/models/nobody/trace/setting"),
        "a rate of an unknown model": session.wire.http(
            "POST", "/v2/models/nobody/trace/setting", {"trace_rate": "9"}
        ),
    }


def _values(**settings: Any) -> dict[str, Any]:
    return {"settings": {name: {"value": value} for name, value in settings.items()}}


@scenario("grpc")
def trace_settings_over_grpc(session: Session) -> Seen:
    messages = {
        "before": {},
        "a rate": _values(trace_rate=["200"]),
        "a rate that is no number": _values(trace_rate=["often"]),
        "two rates": _values(trace_rate=["1", "2"]),
        "a count": _values(trace_count=["5"]),
        "a level": _values(trace_level=["TENSORS"]),
        "a level that is not there": _values(trace_level=["ALL"]),
        "no level": _values(trace_level=["OFF"]),
        "a file": _values(trace_file=["elsewhere"]),
        "an unknown setting": _values(colour=["red"]),
        "back to the start": _values(trace_rate=[], trace_count=[], trace_level=[]),
        "of a model": {"model_name": "gain"},
        "of an unknown model": {"model_name": "nobody"},
    }
    return session.wire.calls("TraceSetting", messages)


@scenario("http")
def log_settings_over_http(session: Session) -> Seen:
    bodies = {
        "less": {"log_info": False},
        "more": {"log_info": True},
        "a text": {"log_info": "yes"},
        "verbose": {"log_verbose_level": 0},
        "a text as level": {"log_verbose_level": "1"},
        "a level below zero": {"log_verbose_level": -1},
        "a format": {"log_format": "ISO8601"},
        "a format that is not there": {"log_format": "XML"},
        "the default format": {"log_format": "default"},
        "a file": {"log_file": "elsewhere.log"},
        "an unknown setting": {"colour": "red"},
        "warnings and errors": {"log_warning": True, "log_error": True},
        "nothing": {},
        "no JSON": b"nope",
        "an empty body": b"",
    }
    return {
        "before": session.wire.http("GET", "/v2/logging"),
        **session.wire.post("/v2/logging", bodies),
        "after": session.wire.http("GET", "/v2/logging"),
    }


@scenario("grpc")
def log_settings_over_grpc(session: Session) -> Seen:
    def given(**settings: Any) -> dict[str, Any]:
        return {"settings": settings}

    messages = {
        "before": {},
        "less": given(log_info={"bool_param": False}),
        "more": given(log_info={"bool_param": True}),
        "a text": given(log_info={"string_param": "yes"}),
        "verbose": given(log_verbose_level={"uint32_param": 0}),
        "a boolean as level": given(log_verbose_level={"bool_param": True}),
        "a format": given(log_format={"string_param": "ISO8601"}),
        "a format that is not there": given(log_format={"string_param": "XML"}),
        "the default format": given(log_format={"string_param": "default"}),
        "a file": given(log_file={"string_param": "elsewhere.log"}),
        "an unknown setting": given(colour={"string_param": "red"}),
        "after": {},
    }
    return session.wire.calls("LogSettings", messages)
