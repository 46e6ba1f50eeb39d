"""Defines the options of tritonserver 2.51 and of newer releases, and the effect of each option in Backline.

The names and the accepted values are those in src/command_line_parser.cc of triton-inference-server/server.
docs/from-triton.md shows this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from backline.access.restricted import GRPC_PREFIX, parse_restrictions
from backline.schedule.cache.config import CACHES
from backline_client.values.errors import InvalidArgument

#: "taken" means that Backline has the option or an equivalent, "no effect" that Backline has no equivalent
#: and needs none, and "missing" that Backline lacks the feature.
Outcome: TypeAlias = Literal["taken", "no effect", "missing"]
#: A function that checks a value as Triton does, and returns the value in the form that the translation
#: expects. Raises InvalidArgument, with Triton's text, if the value is invalid.
Check: TypeAlias = Callable[[str], str]


def text(value: str) -> str:
    return value


def whole(value: str) -> str:
    try:
        return str(int(value))
    except ValueError:
        raise InvalidArgument(f"Invalid option value. Got {value}") from None


def decimal(value: str) -> str:
    try:
        float(value)
    except ValueError:
        raise InvalidArgument(f"Invalid option value. Got {value}") from None
    return value


def boolean(value: str) -> str:
    match value.lower():
        case "true" | "1" | "on":
            return "true"
        case "false" | "0" | "off":
            return "false"
    raise InvalidArgument(f"invalid value for bool option: {value}")


def one_of(name: str, *allowed: str) -> Check:
    """Returns a check that accepts the allowed words in upper or lower case."""

    def check(value: str) -> str:
        if value.lower() not in allowed:
            raise InvalidArgument(f"invalid argument for --{name}; expected {', '.join(allowed)}")
        return value.lower()

    return check


def pair(value: str) -> str:
    first, colon, second = value.partition(":")
    if not colon:
        raise InvalidArgument(
            "Cannot parse pair option due to incorrect number of inputs.--<pair option> argument requires"
            f" format <first>:<second>. Found: {value}"
        )
    return f"{whole(first)}:{decimal(second)}"


def setting(name: str, form: str) -> Check:
    """Returns a check that accepts values that contain "=". Its errors quote `form`, the expected form."""

    def check(value: str) -> str:
        if "=" not in value:
            raise InvalidArgument(f"--{name} option format is {form}. Got {value}")
        return value

    return check


def restriction(option: str, prefix: str = "") -> Check:
    """Returns a check that accepts names of restricted APIs, together with the header field that these APIs
    need.
    """

    def check(value: str) -> str:
        parse_restrictions(option, [value], prefix)
        return value

    return check


def cache_setting(value: str) -> str:
    form = "--cache-config option format is <cache name>,<setting>=<value>"
    if "," not in value:
        raise InvalidArgument(f"No cache specified. {form}. Got {value}")
    kind = value.partition(",")[0]
    if kind not in CACHES:
        raise InvalidArgument(
            f"error: creating server: Invalid argument - unable to find 'libtritoncache_{kind}.so' for cache."
            f" Searched: the caches of Backline, which are {' and '.join(CACHES)}"
        )
    return setting("cache-config", "<cache name>,<setting>=<value>")(value)


def metrics_setting(value: str) -> str:
    name, equals, given = value.partition("=")
    if not (name and equals and given) or "," in name:
        raise InvalidArgument(f"--metrics-config option format is <setting>=<value>. Got {value}")
    return value


def log_format(value: str) -> str:
    known = {"default": "triton", "iso8601": "triton-ISO8601", "json": "json"}
    if value.lower() not in known:
        raise InvalidArgument("invalid argument for --log-format; expected default, ISO8601 or json")
    return known[value.lower()]


def resource(value: str) -> str:
    parts = value.split(":")
    if len(parts) not in (2, 3) or not parts[0]:
        raise InvalidArgument(
            "--rate-limit-resource option format is '<resource_name>:<count>:<device>' or"
            f" '<resource_name>:<count>'. Got {value}"
        )
    return ":".join((parts[0], *map(whole, parts[1:])))


def host_policy(value: str) -> str:
    checked = setting("host-policy", "'<policy name>,<setting>=<value>'")(value)
    name = checked.partition(",")[2].partition("=")[0]
    if name not in ("numa-node", "cpu-cores"):
        raise InvalidArgument(
            "error: setting host policy: Unsupported - Unsupported host policy setting"
            f" '{name}' is specified, supported settings are 'numa-node', 'cpu-cores'"
        )
    return checked


@dataclass(frozen=True, slots=True)
class TritonOption:
    """An option of tritonserver. `name` lacks the dashes. `check` is None for a flag, which has no value."""

    name: str
    check: Check | None
    outcome: Outcome
    #: What the option does in Backline, or why it has no effect; for the documentation and the log.
    becomes: str
    #: "once" if the last value, and "each" if every value is passed to the option of `backline serve` with
    #: the same name; empty if the translation has a special rule for the option.
    carried: Literal["once", "each", ""] = ""


def _once(name: str, check: Check, becomes: str) -> TritonOption:
    return TritonOption(name, check, "taken", becomes, "once")


def _each(name: str, check: Check, becomes: str) -> TritonOption:
    return TritonOption(name, check, "taken", becomes, "each")


def _taken(name: str, check: Check | None, becomes: str) -> TritonOption:
    return TritonOption(name, check, "taken", becomes)


def _no_effect(name: str, check: Check | None, because: str) -> TritonOption:
    return TritonOption(name, check, "no effect", because)


def _missing(name: str, check: Check | None, because: str) -> TritonOption:
    return TritonOption(name, check, "missing", because)


_ONE_LOOP = "one event loop handles all connections"
_NO_POOL = "Backline has no such pool"
_PINGS = "Backline answers every ping and closes connections by its own time limits"
_SAGEMAKER = "every HTTP port has SageMaker's routes"
_VERTEX = "Backline has no Vertex AI endpoints"

OPTIONS: Final[tuple[TritonOption, ...]] = (
    _once("id", text, "the server's name in its metadata; `triton` by default"),
    _once("exit-timeout-secs", whole, "seconds to finish requests in flight on shutdown"),
    _once("log-verbose", whole, "1 and above log each request, 2 and above everything"),
    _once("log-info", boolean, "the same"),
    _once("log-warning", boolean, "the same"),
    _once("log-error", boolean, "the same"),
    _once("log-format", log_format, "`default` and `ISO8601` are Triton's forms; `json` is Backline's"),
    _once("log-file", text, "the same; if the file cannot be opened, the log goes to stderr"),
    _taken("model-store", text, "the same as `--model-repository`"),
    _each("model-repository", text, "a folder or URL; repeatable"),
    _once("exit-on-error", boolean, "the same, and `true` by default"),
    _taken("disable-auto-complete-config", None, "the same"),
    _taken("strict-model-config", boolean, "`true` is `--disable-auto-complete-config`"),
    _once("strict-readiness", boolean, "the same"),
    _taken("model-control-mode", one_of("model-control-mode", "none", "poll", "explicit"), "the same"),
    _taken("repository-poll-secs", whole, "the same; 0 or less loads the repositories once, as mode `none`"),
    _each("load-model", text, "the same; needs mode `explicit`"),
    _once("model-config-name", text, "the same"),
    _once("model-load-thread-count", whole, "the same"),
    _once("model-load-retry-count", whole, "the same"),
    _once("model-namespacing", boolean, "the same"),
    _taken("allow-http", boolean, "`false` does not open the HTTP port; the other ports still speak HTTP"),
    _once("http-address", text, "the same; also the default of `--metrics-address`"),
    _once("http-port", whole, "the same"),
    _once("reuse-http-port", boolean, "the same"),
    _once("http-header-forward-pattern", text, "the same; Python's syntax of regular expressions"),
    _once("http-max-input-size", whole, "the same, and also the limit of a gRPC message"),
    _each("http-restricted-api", restriction("--http-restricted-api"), "the same"),
    _taken("allow-grpc", boolean, "`false` does not open the gRPC port; the other ports still speak gRPC"),
    _once("grpc-address", text, "the same"),
    _once("grpc-port", whole, "the same"),
    _once("reuse-grpc-port", boolean, "the same"),
    _once("grpc-header-forward-pattern", text, "the same; Python's syntax of regular expressions"),
    _each("grpc-restricted-protocol", restriction("--grpc-restricted-protocol", GRPC_PREFIX), "the same"),
    _taken("grpc-use-ssl", boolean, "the gRPC port speaks TLS; the others do not"),
    _taken("grpc-use-ssl-mutual", boolean, "the same, for clients with a certificate signed by the root"),
    _taken("grpc-server-cert", text, "the same"),
    _taken("grpc-server-key", text, "the same"),
    _taken("grpc-root-cert", text, "the same, with `--grpc-use-ssl-mutual`"),
    _taken(
        "allow-metrics", boolean, "`false` does not open the metrics port; the others still serve /metrics"
    ),
    _once("metrics-address", text, "the same"),
    _once("metrics-port", whole, "the same"),
    _once("reuse-metrics-port", boolean, "the same"),
    _taken(
        "metrics-config",
        metrics_setting,
        "the same; `histogram_latencies` is `true` by default",
    ),
    _taken(
        "trace-config",
        setting("trace-config", "'<trace mode>,<setting>=<value>'"),
        "the same; a level without a file is a warning",
    ),
    _taken("trace-file", text, "`--trace-config triton,file=PATH`"),
    _taken("trace-level", text, "`--trace-config level=LEVEL`; `MIN` and `MAX` are `TIMESTAMPS`"),
    _taken("trace-rate", whole, "`--trace-config rate=RATE`"),
    _taken("trace-count", whole, "`--trace-config count=COUNT`"),
    _taken("trace-log-frequency", whole, "`--trace-config triton,log-frequency=COUNT`"),
    _each(
        "cache-config",
        cache_setting,
        "the same, for the caches `local` and `redis`",
    ),
    _taken("response-cache-byte-size", whole, "`--cache-config local,size=BYTES`; 0 is no cache"),
    _once("rate-limit", one_of("rate-limit", "execution_count", "off"), "the same"),
    _taken(
        "rate-limit-resource", resource, "the same; without `--rate-limit=execution_count` it has no effect"
    ),
    _once("allow-client-shm", boolean, "the same, but `true` by default, as in 2.51"),
    _no_effect("http-thread-count", whole, _ONE_LOOP),
    _no_effect("grpc-infer-thread-count", whole, _ONE_LOOP),
    _no_effect("grpc-infer-allocation-pool-size", whole, _NO_POOL),
    _no_effect("grpc-max-response-pool-size", whole, "a stream waits for its client, so nothing accumulates"),
    _no_effect(
        "grpc-infer-response-compression-level",
        one_of("grpc_infer_response_compression_level", "none", "low", "medium", "high"),
        "a client asks for compression by its own settings",
    ),
    _no_effect("grpc-keepalive-time", whole, _PINGS),
    _no_effect("grpc-keepalive-timeout", whole, _PINGS),
    _no_effect("grpc-keepalive-permit-without-calls", boolean, _PINGS),
    _no_effect("grpc-http2-max-pings-without-data", whole, _PINGS),
    _no_effect("grpc-http2-min-recv-ping-interval-without-data", whole, _PINGS),
    _no_effect("grpc-http2-max-ping-strikes", whole, _PINGS),
    _missing("grpc-max-connection-age", whole, "connections are not closed because of their age"),
    _missing("grpc-max-connection-age-grace", whole, "connections are not closed because of their age"),
    _no_effect("enable-peer-access", boolean, "the runtimes decide how GPUs exchange data"),
    _no_effect("pinned-memory-pool-byte-size", whole, _NO_POOL),
    _no_effect("cuda-memory-pool-byte-size", pair, _NO_POOL),
    _no_effect("cuda-virtual-address-size", pair, _NO_POOL),
    _no_effect("min-supported-compute-capability", decimal, "the runtimes decide which GPUs they can use"),
    _no_effect("buffer-manager-thread-count", whole, "Backline has no such threads"),
    _missing("host-policy", host_policy, "give `cpus` in the models' configurations"),
    _missing(
        "model-load-gpu-limit", pair, "give `--gpu-memory-budget GPU:SIZE`, a size instead of a fraction"
    ),
    _no_effect("allow-gpu-metrics", boolean, "NVIDIA's DCGM exporter has metrics of GPUs"),
    _no_effect("allow-cpu-metrics", boolean, "metrics of the CPU are always on"),
    _no_effect("metrics-interval-ms", decimal, "metrics are read when they are scraped"),
    _no_effect("backend-directory", text, "backends are part of Backline; install their runtimes with pip"),
    _no_effect("cache-directory", text, "caches are part of Backline"),
    _missing("repoagent-directory", text, "Backline has no repository agents"),
    _missing(
        "backend-config",
        setting("backend-config", "'<backend name>,<setting>=<value>'"),
        "give `parameters` in the models' configurations",
    ),
    _missing("allow-sagemaker", boolean, _SAGEMAKER),
    _missing("sagemaker-port", whole, _SAGEMAKER),
    _missing("sagemaker-safe-port-range", text, _SAGEMAKER),
    _missing("sagemaker-thread-count", whole, _SAGEMAKER),
    _missing("allow-vertex-ai", boolean, _VERTEX),
    _missing("vertex-ai-port", whole, _VERTEX),
    _missing("vertex-ai-thread-count", whole, _VERTEX),
    _missing("vertex-ai-default-model", text, _VERTEX),
)
