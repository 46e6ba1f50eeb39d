"""Restricted APIs: groups of routes that need a header field with a given value, as in Triton.

The groups and their names are Triton's (src/restricted_features.h of triton-inference-server/server).
Restrictions apply in addition to keys, scopes and the rules for web pages.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from backline.access.scope import Scope
from backline_client.values.errors import InvalidArgument

#: The prefix of the header field's name in gRPC metadata.
GRPC_PREFIX = "triton-grpc-protocol-"


class Api(StrEnum):
    """A group of routes and gRPC methods that can be restricted."""

    HEALTH = "health"
    METADATA = "metadata"
    INFERENCE = "inference"
    SHARED_MEMORY = "shared-memory"
    MODEL_CONFIG = "model-config"
    MODEL_REPOSITORY = "model-repository"
    STATISTICS = "statistics"
    TRACE = "trace"
    LOGGING = "logging"


#: The groups of routes below /v2, by their first segment.
_BELOW_V2 = {
    "health": Api.HEALTH,
    "repository": Api.MODEL_REPOSITORY,
    "systemsharedmemory": Api.SHARED_MEMORY,
    "cudasharedmemory": Api.SHARED_MEMORY,
    "trace": Api.TRACE,
    "traces": Api.TRACE,
    "activity": Api.STATISTICS,
    "logging": Api.LOGGING,
    "audit": Api.LOGGING,
}
#: The groups of routes of models, by the first fixed segment that follows the names of the model and its
#: version.
_OF_MODELS = {
    "ready": Api.HEALTH,
    "config": Api.MODEL_CONFIG,
    "config-origins": Api.MODEL_CONFIG,
    "explain-config": Api.MODEL_CONFIG,
    "stats": Api.STATISTICS,
    "infer": Api.INFERENCE,
    "infer_stream": Api.INFERENCE,
    "generate": Api.INFERENCE,
    "generate_stream": Api.INFERENCE,
    "labels": Api.MODEL_REPOSITORY,
    "trace": Api.TRACE,
    "promote": Api.MODEL_REPOSITORY,
    "rollback": Api.MODEL_REPOSITORY,
    "record": Api.TRACE,
    "recorded": Api.TRACE,
}
#: The groups of routes and methods that Triton does not have, by the scope that they require.
_OF_SCOPES = {
    Scope.HEALTH: Api.HEALTH,
    Scope.INFER: Api.INFERENCE,
    Scope.MANAGE: Api.MODEL_REPOSITORY,
    Scope.ADMIN: Api.MODEL_REPOSITORY,
}
_TRITON = "inference.GRPCInferenceService"
#: The groups of the methods of GRPCInferenceService, by the start of their names.
_OF_METHODS = {
    "ServerLive": Api.HEALTH,
    "ServerReady": Api.HEALTH,
    "ModelReady": Api.HEALTH,
    "ServerMetadata": Api.METADATA,
    "ModelMetadata": Api.METADATA,
    "ModelConfig": Api.MODEL_CONFIG,
    "ModelStatistics": Api.STATISTICS,
    "ModelInfer": Api.INFERENCE,
    "ModelStreamInfer": Api.INFERENCE,
    "Repository": Api.MODEL_REPOSITORY,
    "SystemSharedMemory": Api.SHARED_MEMORY,
    "CudaSharedMemory": Api.SHARED_MEMORY,
    "TraceSetting": Api.TRACE,
    "LogSettings": Api.LOGGING,
}


def api_of_route(pattern: Sequence[str], scope: Scope) -> Api | None:
    """Returns the group of an HTTP route, given the segments of its pattern. Returns None for metrics."""
    if pattern == ("metrics",):
        return None
    if pattern[0] != "v2" or scope is Scope.INFER:
        return _OF_SCOPES.get(scope, Api.METADATA)
    if pattern[:2] == ("v2", "models"):
        for segment in pattern[2:]:
            if segment in _OF_MODELS:
                return _OF_MODELS[segment]
        return Api.METADATA
    return _BELOW_V2.get(pattern[1], Api.METADATA) if len(pattern) > 1 else Api.METADATA


def api_of_method(path: bytes, scope: Scope) -> Api:
    """Returns the group of a gRPC method, given its path; reflection counts as metadata."""
    service, _, method = path.decode().strip("/").partition("/")
    if service != _TRITON:
        return _OF_SCOPES.get(scope, Api.METADATA)
    return next((api for start, api in _OF_METHODS.items() if method.startswith(start)), Api.METADATA)


class Requirement(Struct, frozen=True):
    """A header field and the value that the field must have."""

    name: str
    value: str

    def met_by(self, headers: Mapping[bytes, bytes]) -> bool:
        given = headers.get(self.name.lower().encode())
        return given is not None and hmac.compare_digest(given, self.value.encode())


class RestrictedApis(Struct, frozen=True):
    """The header field that each restricted group requires, over HTTP and over gRPC."""

    http: Mapping[Api, Requirement]
    grpc: Mapping[Api, Requirement]

    def refusal(self, api: Api | None, headers: Mapping[bytes, bytes], *, grpc: bool) -> str | None:
        """Returns why a request is refused, in Triton's words; None if it is allowed."""
        if api is None:
            return None
        required = (self.grpc if grpc else self.http).get(api)
        if required is None or required.met_by(headers):
            return None
        return f"This {'protocol' if grpc else 'API'} is restricted, expecting header '{required.name}'"


def parse_restrictions(option: str, texts: Sequence[str], prefix: str = "") -> dict[Api, Requirement]:
    """Parses values such as "health,metadata:key=value" of an option such as "--http-restricted-api".

    `prefix` precedes the name of the header field. Raises InvalidArgument in Triton's words.
    """
    what = "protocol" if prefix else "api"
    found: dict[Api, Requirement] = {}
    for text in texts:
        groups, colon, rest = text.partition(":")
        name, equals, value = rest.partition("=")
        if not colon or not equals or not name:
            raise InvalidArgument(
                f"{option} option format is '<config name>:<setting>=<value>'. Got {text.partition('=')[0]}"
            )
        for group in groups.split(","):
            if group not in tuple(Api):
                raise InvalidArgument(
                    f"unknown restricted {what} '{group}'; expected one of {', '.join(Api)}"
                )
            api = Api(group)
            if api in found:
                raise InvalidArgument(
                    f"restricted {what} '{group}' can not be specified in multiple config groups"
                )
            found[api] = Requirement(prefix + name, value)
    return found
