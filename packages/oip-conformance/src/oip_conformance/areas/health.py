"""Health: is the server alive, is it ready, is a model ready?"""

from __future__ import annotations

from oip_conformance import specification as spec
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Level
from oip_conformance.target import Target, check, key, ok

MUST, SHOULD, OBSERVED = Level
area = Area("health", "required")


@area.row("live", MUST, spec.LIVE)
def live(t: Target) -> None:
    """A server that answers reports that it is live, with status 200."""
    ok(t.get("/v2/health/live"))


@area.row("ready", MUST, spec.READY)
def ready(t: Target) -> None:
    """A server whose models can all be used reports that it is ready, with status 200."""
    ok(t.get("/v2/health/ready"))


@area.row("model-ready", MUST, spec.MODEL_READY, "sum")
def model_ready(t: Target) -> None:
    """A model that can be used is ready, with status 200."""
    ok(t.get(t.path("sum", "ready")))


@area.row("version-ready", MUST, spec.MODEL_READY, "versioned")
def version_ready(t: Target) -> None:
    """A version of a model that can be used is ready, with status 200."""
    ok(t.get(t.path("versioned", "ready", "1")))


@area.row("unknown-model", MUST, spec.HEALTH_STATUS)
def unknown_model(t: Target) -> None:
    """A model that does not exist is not ready: the status is not 200."""
    answer = t.get("/v2/models/no_such_model/ready")
    check(answer.status >= 400, "a status of 400 or more", answer.status)


@area.row("unknown-version", MUST, spec.HEALTH_STATUS, "sum")
def unknown_version(t: Target) -> None:
    """A version that does not exist is not ready: the status is not 200."""
    answer = t.get(t.path("sum", "ready", "99"))
    check(answer.status >= 400, "a status of 400 or more", answer.status)


@area.row("false-is-4xx", SHOULD, spec.HEALTH_STATUS)
def false_is_4xx(t: Target) -> None:
    """What is not ready has a status between 400 and 499."""
    answer = t.get("/v2/models/no_such_model/ready")
    check(400 <= answer.status < 500, "a status between 400 and 499", answer.status)


@area.row("unknown-status", OBSERVED, None)
def unknown_status(t: Target) -> str:
    """The status of the readiness of an unknown model: 400, 404 or 503."""
    return f"status {t.get('/v2/models/no_such_model/ready').status}"


def _body(answer: Answer) -> str:
    if not answer.body:
        return "an empty body"
    try:
        document = answer.json()
    except Exception:
        return "a body that is not JSON"
    return f"JSON with {', '.join(sorted(document))}" if isinstance(document, dict) else "JSON, not an object"


@area.row("live-body", OBSERVED, spec.HEALTH_BODY)
def live_body(t: Target) -> str:
    """The body of liveness: empty by one specification, an object with `live` by the other."""
    return _body(t.get("/v2/health/live"))


@area.row("model-ready-body", OBSERVED, spec.MODEL_READY_BODY, "sum")
def model_ready_body(t: Target) -> str:
    """The body of a model's readiness: empty by one specification, an object with `name` and `ready` by the other."""
    return _body(t.get(t.path("sum", "ready")))


@area.row("bodies-agree", MUST, spec.MODEL_READY_BODY, "sum")
def bodies_agree(t: Target) -> None:
    """If the answer about a ready model has a JSON body, it says true and names the model."""
    answer = ok(t.get(t.path("sum", "ready")))
    if answer.body.strip().startswith(b"{"):
        document = answer.json()
        check(key(document, "ready", bool), "ready: true", document)
        check(document.get("name", t.name("sum")) == t.name("sum"), f"the name '{t.name('sum')}'", document)


@area.row("head", OBSERVED, None)
def head(t: Target) -> str:
    """HEAD on liveness, as load balancers send it."""
    return f"status {t.request('HEAD', '/v2/health/live').status}"
