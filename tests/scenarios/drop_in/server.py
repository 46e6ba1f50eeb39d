"""Health, metadata and configurations."""

from __future__ import annotations

from scenarios.scenario import Seen, scenario
from scenarios.session import Session

_STUDIO = ("gain", "peak", "frames", "meter", "mastering", "lengths", "fingerprint", "disk", "warm", "genre")
_MODELS = (*_STUDIO, "types", "fixed", "text", "words")


@scenario("http")
def health_over_http(session: Session) -> Seen:
    models = ("gain", "mastering", "gain/versions/1", "gain/versions/9", "release", "release/versions/2")
    wrong = ("nobody", "spare", "gain/versions/x", "gain/versions/", "gain/versions/-1")
    return {
        **session.wire.get("/v2/health/live", "/v2/health/ready"),
        **session.wire.get(*(f"/v2/models/{model}/ready" for model in (*models, *wrong))),
        "POST": session.wire.http("POST", "/v2/health/live"),
        "HEAD": session.wire.http("HEAD", "/v2/health/live"),
        "PUT": session.wire.http("PUT", "/v2/health/live"),
    }


@scenario("http")
def unknown_routes(session: Session) -> Seen:
    paths = ("/v3", "/v2/health", "/v2/health/nope", "/v2/nope", "/v1/models/gain", "/v2/models/gain/nope")
    return {
        **session.wire.get(*paths),
        "GET infer": session.wire.http("GET", "/v2/models/gain/infer"),
        "GET generate": session.wire.http("GET", "/v2/models/gain/generate"),
        "GET load": session.wire.http("GET", "/v2/repository/models/gain/load"),
        "POST metadata": session.wire.http("POST", "/v2/models/gain", {}),
        "POST server metadata": session.wire.http("POST", "/v2", {}),
        "DELETE a model": session.wire.http("DELETE", "/v2/models/gain"),
    }


@scenario("grpc")
def health_over_grpc(session: Session) -> Seen:
    models = {
        name: {"name": name, **({"version": version} if version else {})}
        for name, version in (("gain", ""), ("mastering", ""), ("nobody", ""), ("spare", ""), ("", ""))
    }
    versions = {f"gain {one}": {"name": "gain", "version": one} for one in ("1", "9", "x", "-1")}
    released = {f"release {one}": {"name": "release", "version": one} for one in ("", "1", "2", "3")}
    return {
        "live": session.wire.rpc("ServerLive", {}),
        "ready": session.wire.rpc("ServerReady", {}),
        **session.wire.calls("ModelReady", models | versions | released),
    }


@scenario("http")
def metadata_over_http(session: Session) -> Seen:
    wrong = ("nobody", "spare", "gain/versions/9", "gain/versions/x", "release/versions/2", "release")
    return session.wire.get("/v2", *(f"/v2/models/{name}" for name in (*_MODELS, "gain/versions/1", *wrong)))


@scenario("grpc")
def metadata_over_grpc(session: Session) -> Seen:
    named = {name: {"name": name} for name in (*_MODELS, "release", "nobody", "spare", "")}
    versions = {
        f"{name} {version}": {"name": name, "version": version}
        for name, version in (("gain", "1"), ("gain", "9"), ("gain", "x"), ("release", "2"), ("release", "3"))
    }
    return {
        "server": session.wire.rpc("ServerMetadata", {}),
        **session.wire.calls("ModelMetadata", named | versions),
    }


@scenario("http")
def configurations_over_http(session: Session) -> Seen:
    wrong = ("nobody", "spare", "gain/versions/9", "gain/versions/x", "release/versions/2")
    paths = (*_MODELS, "plays", "release", "gain/versions/1", *wrong)
    return session.wire.get(*(f"/v2/models/{path}/config" for path in paths))


@scenario("grpc")
def configurations_over_grpc(session: Session) -> Seen:
    named = {name: {"name": name} for name in (*_MODELS, "plays", "release", "nobody", "spare")}
    versions = {f"gain {one}": {"name": "gain", "version": one} for one in ("1", "9", "x")}
    return session.wire.calls("ModelConfig", named | versions)
