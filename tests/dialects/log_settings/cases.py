"""Requests of Triton's logging extension as plain data, and how to send them to any server."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

#: The settings before every case.
DEFAULTS = {
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}

#: The settings that stock clients send; {} changes nothing.
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "verbose": {"log_verbose_level": 1},
    "very verbose": {"log_verbose_level": 3},
    "errors only": {"log_info": False, "log_warning": False},
    "nothing at all": {"log_info": False, "log_warning": False, "log_error": False},
    "ISO8601": {"log_format": "ISO8601"},
    "a format that there is not": {"log_format": "iso"},
    "a file": {"log_file": "/tmp/elsewhere"},
    "no file": {"log_file": ""},
    "all": {
        "log_info": False,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 2,
        "log_format": "ISO8601",
    },
    "unknown": {"log_debug": True},
    "null": {"log_info": None},
    "a file that is null": {"log_file": None},
}
#: Bodies of POST /v2/logging that no client would send.
BODIES: dict[str, str] = {
    "empty": "",
    "no JSON": "{",
    "two values": '{"log_info": true}{}',
    "a list": "[]",
    "a number": "1",
    "a text for info": '{"log_info": "true"}',
    "a number for error": '{"log_error": 1}',
    "a text for a level": '{"log_verbose_level": "1"}',
    "a negative level": '{"log_verbose_level": -1}',
    "a fraction as level": '{"log_verbose_level": 1.5}',
    "a level of true": '{"log_verbose_level": true}',
    "a level that is too large": '{"log_verbose_level": 4294967296}',
    "a number for the format": '{"log_format": 1}',
    "one good and one bad": '{"log_info": false, "log_warning": "x"}',
    "twice": '{"log_info": true, "log_info": false}',
}
#: LogSettings messages that no client would send: each setting's field and value, None for a setting without
#: value.
MESSAGES: dict[str, dict[str, tuple[str, Any] | None]] = {
    "a number for info": {"log_info": ("uint32_param", 1)},
    "a text for info": {"log_info": ("string_param", "true")},
    "nothing for info": {"log_info": None},
    "a boolean for a level": {"log_verbose_level": ("bool_param", True)},
    "a text for a level": {"log_verbose_level": ("string_param", "1")},
    "a level that is too large": {"log_verbose_level": ("uint32_param", 4294967295)},
    "a boolean for the format": {"log_format": ("bool_param", True)},
    "nothing for the format": {"log_format": None},
    "nothing for the file": {"log_file": None},
    "a boolean for the file": {"log_file": ("bool_param", True)},
    "one good and one bad": {"log_error": ("bool_param", False), "log_format": ("string_param", "x")},
}


@dataclass(frozen=True)
class Ask:
    """A server, by its ports of 127.0.0.1."""

    http_port: int
    grpc_port: int

    def run(self, case: str) -> Any:
        """The response to a case, and the settings after it."""
        self._reset()
        answer = CASES[case](self)
        return json.loads(json.dumps({"answer": answer, "after": self.settings()}))

    def settings(self) -> Any:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{self.http_port}") as client:
            return client.get_log_settings()

    def _reset(self) -> None:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{self.http_port}") as client:
            client.update_log_settings(DEFAULTS)

    def by_client(self, way: str, changes: Mapping[str, Any]) -> Any:
        """The result for a stock client: all settings, or the error with its status."""
        module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[way.partition(" ")[0]]
        address = f"127.0.0.1:{self.http_port if module is tritonclient.http else self.grpc_port}"
        options = {"as_json": True} if module is tritonclient.grpc else {}
        try:
            if way.endswith("aio"):
                answer = asyncio.run(_by_aio(module.aio, address, changes, options))
            else:
                with module.InferenceServerClient(address) as client:
                    answer = (
                        client.update_log_settings(changes, **options)
                        if changes
                        else client.get_log_settings(**options)
                    )
        except InferenceServerException as error:
            return {"status": error.status(), "error": error.message()}
        return (
            {name: next(iter(value.values())) for name, value in answer["settings"].items()}
            if "settings" in answer
            else answer
        )

    def by_body(self, body: str) -> Any:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http_port}/v2/logging", body.encode(), 10
            ) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return {"status": str(error.code), "error": json.loads(error.read())["error"]}

    def by_message(self, settings: Mapping[str, tuple[str, Any] | None]) -> Any:
        request = service_pb2.LogSettingsRequest()
        for name, value in settings.items():
            setting = request.settings[name]
            if value is not None:
                setattr(setting, *value)
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{self.grpc_port}") as client:
            try:
                answer = client._client_stub.LogSettings(request, timeout=10)
            except grpc.RpcError as error:
                return {"status": str(error.code()), "error": error.details()}
        return {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in answer.settings.items()
        }


async def _by_aio(module: Any, address: str, changes: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    async with module.InferenceServerClient(address) as client:
        return await (
            client.update_log_settings(changes, **options) if changes else client.get_log_settings(**options)
        )


CASES: dict[str, Callable[[Ask], Any]] = {
    **{
        f"{name} by {way}": lambda ask, way=way, changes=changes: ask.by_client(way, changes)
        for name, changes in CHANGES.items()
        for way in ("http", "http aio", "grpc", "grpc aio")
    },
    **{f"{name} as body": lambda ask, body=body: ask.by_body(body) for name, body in BODIES.items()},
    **{
        f"{name} as message": lambda ask, settings=settings: ask.by_message(settings)
        for name, settings in MESSAGES.items()
    },
}
