"""Who may do what, written by hand: what the scope matrix expects, without the server's own tables.

`Route` describes what a target means; `RULES` and `RPC_RULES` say which scope it needs; a `Credential` says
what its holder may do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

SCOPES = ("infer", "read", "metrics", "manage", "admin")
#: What the server may do with a request.
REACHED, ABSENT, MALFORMED, UNAUTHENTICATED, FORBIDDEN = "reached", "absent", "malformed", "401", "403"

#: The first rule that matches "METHOD pattern" gives the scope. What matches none fails the matrix.
RULES = tuple(
    (re.compile(rule), scope)
    for rule, scope in (
        (r"(GET|HEAD) /v2/health/(live|ready)", "health"),
        (r"(GET|HEAD) /ping", "health"),
        (r"OPTIONS /|(GET|HEAD) /api-description", "public"),
        (r"(GET|HEAD) /models(/\{\}(/\{\})?)?", "read"),
        (r"(POST /models|(PUT|DELETE) /models/\{\}(/\{\}(/set-default)?)?)", "manage"),
        (r"(POST|PUT) /(predictions|explanations)/\{\}(/\{\})?", "infer"),
        (r"(GET|HEAD) /metrics", "metrics"),
        (r"POST /v2/models/\{\}(/versions/\{\})?/(infer|generate)(_stream)?", "infer"),
        (r"POST /v2/models/\{\}/feedback", "infer"),
        (r"POST /models/\{\}(/versions/\{\}|/invoke)?|POST /invocations", "infer"),
        (r"POST /v1/embeddings", "infer"),
        (r"POST /v2/models/\{\}(/versions/\{\})?/jobs", "infer"),
        (r"(GET|HEAD|DELETE) /v2/jobs(/\{\}(/result)?)?|POST /v2/jobs/\{\}/retry", "infer"),
        (r"POST /v1/models/\{\}(/(versions|labels)/\{\})?:(predict|explain|classify|regress)", "infer"),
        (r"(GET|HEAD) /models/\{\}(/versions/\{\})?/stream", "infer"),
        (r"(GET|HEAD) /(console(/\{\})?|v2/access)?", "public"),
        (r"(GET|HEAD) /v2/(logging/lines|models/\{\}/recorded)", "admin"),
        (r"(GET|HEAD) /(v2(/.*)?|openapi\.json)", "read"),
        (r"(GET|HEAD) /v1/models(/\{\}(/(versions|labels)/\{\})?(/metadata)?)?", "read"),
        (r"POST /v2/repository(/\{\})?/index", "read"),
        (r"(POST|PUT|DELETE|PATCH) /v2/(.*/)?(logging|trace|record)(/.*)?", "admin"),
        (r"(PUT /v2/routes/\{\}|DELETE /v2/routes/\{\}|POST /v2/routes/\{\}/(rollback|rollout))", "manage"),
        (r"(POST|PUT|DELETE|PATCH) /v2/(models|repository|(system|cuda)sharedmemory)/.*", "manage"),
    )
)
#: The same for "Service/Method".
RPC_RULES = tuple(
    (re.compile(rule), scope)
    for rule, scope in (
        (r"grpc\.health\.v1\.Health/(Check|Watch)", "health"),
        (r"grpc\.reflection\.v1(alpha)?\.ServerReflection/ServerReflectionInfo", "read"),
        (r"inference\.GRPCInferenceService/Server(Live|Ready)", "health"),
        (r"inference\.GRPCInferenceService/Model(Stream)?Infer", "infer"),
        (r"inference\.GRPCInferenceService/\w+(Metadata|Config|Statistics|Status|Ready|Index)", "read"),
        (r"inference\.GRPCInferenceService/\w+(Load|Unload|Register|Unregister)", "manage"),
        (r"inference\.GRPCInferenceService/(LogSettings|TraceSetting)", "admin"),
        (r"org\.pytorch\.serve\.grpc\.inference\.InferenceAPIsService/Ping", "health"),
        (r"org\.pytorch\.serve\.grpc\.inference\.InferenceAPIsService/(Stream)?Predictions2?", "infer"),
        (r"org\.pytorch\.serve\.grpc\.management\.ManagementAPIsService/(Describe|List)\w+", "read"),
        (r"org\.pytorch\.serve\.grpc\.management\.ManagementAPIsService/\w+", "manage"),
        (r"tensorflow\.serving\.PredictionService/(Predict|Classify|Regress|MultiInference)", "infer"),
        (r"tensorflow\.serving\.(PredictionService|ModelService)/GetModel(Metadata|Status)", "read"),
        (r"tensorflow\.serving\.ModelService/HandleReloadConfigRequest", "manage"),
    )
)


#: What lists models shows those that a caller may read about, and is open to callers who may read about some.
LISTS = re.compile(
    r"(GET|HEAD) /(v1/)?models|(GET|HEAD) /v2/(routes|models(/stats)?)"
    r"|(GET|HEAD|DELETE|POST) /v2/jobs(/.*)?"
    r"|(GET|HEAD|POST) /v2/repository(/\{\})?/index"
    r"|inference\.GRPCInferenceService/(RepositoryIndex|ModelStatistics)"
    r"|org\.pytorch\.serve\.grpc\.management\.ManagementAPIsService/ListModels"
    r"|grpc\.reflection\.v1(alpha)?\.ServerReflection/ServerReflectionInfo"
)


#: The segments of patterns that the name of a model follows.
BEFORE_MODEL = ("models", "predictions", "explanations", "routes")
#: The routes that run the default model, and its name in the matrix.
UNNAMED = re.compile(r"POST /invocations")
DEFAULT_MODEL = "m1"


def scope_by(rules: Iterable[tuple[re.Pattern[str], str]], what: str) -> str:
    for rule, scope in rules:
        if rule.fullmatch(what):
            return scope
    raise AssertionError(f"no rule says which scope {what} needs; add one to tests/support/scope_oracle.py")


@dataclass(frozen=True)
class Meaning:
    """What a request asks for. `scope` is None if the server has no such route, or none for the method."""

    scope: str | None
    model: str | None = None
    #: Whether the target breaks the rules of HTTP.
    malformed: bool = False
    #: Whether it lists models, of which the sender sees those that it may read about.
    lists: bool = False


class Routes:
    """The meaning of targets, given the patterns that the server has, and their methods."""

    def __init__(self, methods: Mapping[str, Iterable[str]]) -> None:
        self.scopes = {
            (method, pattern): scope_by(RULES, f"{method} {pattern}")
            for pattern, known in methods.items()
            for method in known
        }
        self._patterns = {pattern: pattern.split("/")[1:] for pattern in methods}

    def meaning(self, method: str, target: str, *, http2: bool) -> Meaning:
        """A target as RFC 9112 and RFC 9113 define it: a path, or in HTTP/1.1 the absolute form."""
        absolute = re.match(r"(?i)https?://[^/?]*", target)
        if absolute and not http2:
            target = target[absolute.end() :] or "/"
        if not target.startswith("/") or "#" in target:
            return Meaning(None, malformed=True)
        path = target.partition("?")[0]
        if len(path) > 1:
            path = path.removesuffix("/")
        try:
            asked = [unquote_to_bytes(part).decode() for part in path.split("/")[1:]]
        except UnicodeDecodeError:
            return Meaning(None)
        best: tuple[int, str] | None = None
        for pattern, parts in self._patterns.items():
            if len(parts) == len(asked) and all(
                (given.endswith(part[2:]) and given != part[2:] if part[:2] == "{}" else part == given)
                for part, given in zip(parts, asked, strict=True)
            ):
                # A part with an ending, such as {}:predict, is more specific than one without.
                variables = 2 * pattern.count("{}") - any(part[:2] == "{}" != part for part in parts)
                if best is None or variables < best[0]:
                    best = variables, pattern
        scope = self.scopes.get((method, best[1])) if best else None
        if best is None or scope is None:
            return Meaning(None)
        parts = self._patterns[best[1]]
        named = [
            given.removesuffix(part[2:])
            for before, part, given in zip(parts, parts[1:], asked[1:], strict=False)
            if before in BEFORE_MODEL and part[:2] == "{}"
        ]
        if UNNAMED.fullmatch(f"{method} {best[1]}"):
            named = [DEFAULT_MODEL]
        lists = LISTS.fullmatch(f"{method} {best[1]}") is not None
        return Meaning(scope, named[0] if named else None, lists=lists)


@dataclass(frozen=True)
class Credential:
    """What a request carries, and what its sender may do on the `models`, or on all if that is None."""

    name: str
    fields: tuple[tuple[str, str], ...] = ()
    scopes: frozenset[str] = field(default_factory=frozenset)
    models: frozenset[str] | None = None
    valid: bool = True
    #: Whether it has a name; without one, the server asks for a key rather than refuse.
    named: bool = True

    def expected(self, meaning: Meaning) -> frozenset[str]:
        """What may become of a request with this credential."""
        if meaning.malformed:
            return frozenset((MALFORMED, ABSENT))
        if meaning.scope is None:
            return frozenset((ABSENT,))
        if not self.valid:
            return frozenset((UNAUTHENTICATED,))
        if meaning.scope in ("health", "public"):
            return frozenset((REACHED,))
        listed = meaning.lists and meaning.model is None
        if meaning.scope in self.scopes and (self.models is None or listed or meaning.model in self.models):
            return frozenset((REACHED,))
        return frozenset((FORBIDDEN if self.named else UNAUTHENTICATED,))
