"""Reads a command line of tritonserver, and translates it into a command line of `backline serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from backline.access.restricted import GRPC_PREFIX, parse_restrictions
from backline.cli.tritonserver.options import OPTIONS, TritonOption
from backline.observe.metrics_config import as_triton_reads
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.spelling import nearest

_BY_NAME: Mapping[str, TritonOption] = {option.name: option for option in OPTIONS}


class BadCommandLine(BacklineError):
    """Raised for a command line that Triton refuses too. The message begins with Triton's message."""


class BadOption(BadCommandLine):
    """Raised for an option that getopt would refuse in Triton. The caller prefixes the message with the name
    of the program, as getopt does.
    """


@dataclass(frozen=True, slots=True)
class Translation:
    """A command line of `backline serve`, and remarks about options of Triton without an equivalent."""

    arguments: tuple[str, ...]
    #: Sentences about options without an effect, and about options whose feature is missing in Backline.
    without_effect: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """An option on the command line, and its value as the option's check returned it. The value of a flag is
    empty.
    """

    name: str
    value: str


def translate(arguments: Sequence[str], takes_value: Callable[[str], bool | None]) -> Translation:
    """Translates a command line of tritonserver.

    `takes_value(name)` returns whether an option of `backline serve`, such as "--auth", needs a value, or
    None if there is no such option. Options of `backline serve` are passed on unchanged. Raises
    BadCommandLine if Triton would refuse the command line.
    """
    own: list[Given] = []
    passed: list[str] = []
    for one in _read(arguments, takes_value):
        if isinstance(one, Given):
            own.append(one)
        else:
            passed += one
    values: dict[str, list[str]] = {}
    for given in own:
        values.setdefault(given.name, []).append(given.value)
    for name, prefix in (("http-restricted-api", ""), ("grpc-restricted-protocol", GRPC_PREFIX)):
        try:
            parse_restrictions(f"--{name}", values.get(name, ()), prefix)
        except InvalidArgument as error:
            raise _bad_option(name, error) from None
    told = {outcome: _told(values, outcome) for outcome in ("no effect", "missing")}
    traces, unwritten = _traces(values, {name: given[-1] for name, given in values.items()})
    metrics, ignored = as_triton_reads(values.get("metrics-config", ()))
    return Translation(
        (
            *_translated(values),
            *(f"--trace-config={setting}" for setting in traces),
            *(f"--metrics-config={setting}" for setting in metrics),
            *passed,
        ),
        tuple(told["no effect"]),
        (*told["missing"], *([unwritten] if unwritten else []), *ignored),
    )


def _read(
    arguments: Sequence[str], takes_value: Callable[[str], bool | None]
) -> Iterator[Given | tuple[str, ...]]:
    """Yields each option of Triton as a Given, and each other option as a tuple of its arguments."""
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if argument == "--" and rest:
            argument = rest.pop()
            raise BadCommandLine(f"Unexpected argument: {argument}")
        if argument == "--":
            return
        if not argument.startswith("--"):
            if argument.startswith("-") and len(argument) > 1:
                raise BadOption(f"invalid option -- '{argument[1]}'; options begin with two dashes")
            raise BadCommandLine(
                f"Unexpected argument: {argument}; specify repositories with --model-repository"
            )
        name, equals, value = argument[2:].partition("=")
        option = _find(name, argument)
        if option is None:
            needs = takes_value(f"--{name}")
            if needs is None:
                near = nearest(name, [option.name for option in OPTIONS], 1)
                hint = (
                    f"did you mean --{near[0]}?"
                    if near
                    else "`backline tritonserver --help` lists all options"
                )
                raise BadOption(f"unrecognized option '{argument}'; {hint}")
            yield (argument, rest.pop()) if needs and not equals and rest else (argument,)
        elif option.check is None:
            if equals:
                raise BadOption(f"option '--{option.name}' doesn't allow an argument")
            yield Given(option.name, "")
        else:
            if not equals:
                if not rest:
                    raise BadOption(f"option '--{option.name}' requires an argument")
                value = rest.pop()
            try:
                yield Given(option.name, option.check(value))
            except InvalidArgument as error:
                raise _bad_option(option.name, error) from None


def _bad_option(name: str, error: InvalidArgument) -> BadCommandLine:
    if error.message.startswith("error: "):  # Triton reports such errors after it has read the command line
        return BadCommandLine(error.message)
    return BadCommandLine(f'Bad option: "--{name}".\n{error.message}')


def _find(name: str, argument: str) -> TritonOption | None:
    """Returns the option of Triton with this name. As with getopt_long, `name` may be any unique start of the
    option's name.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    found = [option for option in OPTIONS if option.name.startswith(name)] if name else []
    if len(found) > 1 and name:
        names = " ".join(f"'--{option.name}'" for option in found)
        raise BadOption(f"option '{argument}' is ambiguous; possibilities: {names}")
    return found[0] if found else None


def _told(values: Mapping[str, Sequence[str]], outcome: str) -> Iterator[str]:
    for name in values:
        option = _BY_NAME[name]
        if option.outcome == outcome:
            yield f"--{name} has no effect: {option.becomes.replace('`', '')}"


def _translated(values: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yields the options of `backline serve` that correspond to checked values of Triton's options."""
    last = {name: given[-1] for name, given in values.items()}
    for name, given in values.items():
        match _BY_NAME[name].carried:
            case "once":  # only the last value counts
                yield f"--{name}={last[name]}"
            case "each":
                yield from (f"--{name}={value}" for value in given)
    yield from (f"--model-repository={value}" for value in values.get("model-store", ()))
    yield from (
        f"--no-{what}" for what in ("http", "grpc", "metrics") if last.get(f"allow-{what}") == "false"
    )
    if "disable-auto-complete-config" in values or last.get("strict-model-config") == "true":
        yield "--disable-auto-complete-config"
    yield from _control(values, last)
    yield from _tls(last)
    yield from _cache(values, last)
    if last.get("rate-limit") == "execution_count":
        yield from (f"--rate-limit-resource={value}" for value in values.get("rate-limit-resource", ()))


def _control(values: Mapping[str, Sequence[str]], last: Mapping[str, str]) -> Iterator[str]:
    mode = last.get("model-control-mode", "none")
    seconds = int(last.get("repository-poll-secs", "15"))
    if mode == "poll" and seconds <= 0:
        mode = "none"
    yield f"--model-control-mode={mode}"
    if mode == "poll":
        yield f"--repository-poll-secs={seconds}"
    loaded = values.get("load-model", ())
    if loaded and mode != "explicit":
        raise BadCommandLine(
            "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well."
        )
    if "*" in loaded and len(loaded) > 1:
        raise BadCommandLine(
            "error: creating server: Invalid argument - Wildcard model name '*' must be the ONLY startup"
            " model if specified at all."
        )


def _tls(last: Mapping[str, str]) -> Iterator[str]:
    mutual = last.get("grpc-use-ssl-mutual") == "true"
    if not mutual and last.get("grpc-use-ssl") != "true":
        return
    files = {"grpc-server-cert": "ssl-certificate", "grpc-server-key": "ssl-key"}
    if mutual:
        files["grpc-root-cert"] = "ssl-client-ca"
    for name, own in files.items():
        if not last.get(name):
            needs = "mutual" if mutual else "ssl"
            raise BadCommandLine(
                f"failed to start GRPC service: --grpc-use-ssl{'-mutual' if needs == 'mutual' else ''}"
                f" needs --{name}"
            )
        yield f"--{own}={last[name]}"
    yield "--ssl-grpc-only"


def _cache(values: Mapping[str, Sequence[str]], last: Mapping[str, str]) -> Iterator[str]:
    size = int(last.get("response-cache-byte-size", "0"))
    if "response-cache-byte-size" not in values:
        return
    if "cache-config" in values:
        raise BadCommandLine(
            "Error: Incompatible flags --response-cache-byte-size and --cache-config both provided. Please"
            " provide one or the other."
        )
    if size > 0:
        yield f"--cache-config=local,size={size}"


def _traces(values: Mapping[str, Sequence[str]], last: Mapping[str, str]) -> tuple[list[str], str]:
    """Returns the values of --trace-config, and a warning if the trace level has no effect, else ""."""
    old = ("trace-file", "trace-level", "trace-rate", "trace-count", "trace-log-frequency")
    given = [name for name in old if name in values]
    if given and "trace-config" in values:
        raise BadCommandLine(
            f"Error: Incompatible flags --{given[0]} and --trace-config both provided. Please provide one or"
            " the other."
        )
    settings = list(values.get("trace-config", ()))
    for level in dict.fromkeys(values.get("trace-level", ())):
        word = {"MIN": "TIMESTAMPS", "MAX": "TIMESTAMPS"}.get(level.upper(), level.upper())
        settings.append(f"level={word}")
    for name, own in (
        ("trace-file", "triton,file"),
        ("trace-rate", "rate"),
        ("trace-count", "count"),
        ("trace-log-frequency", "triton,log-frequency"),
    ):
        if name in last:
            settings.append(f"{own}={last[name]}")
    levels = [setting for setting in settings if setting.startswith("level=") and setting != "level=OFF"]
    goes_somewhere = any(
        setting.startswith("triton,file=") or setting.lower() == "mode=opentelemetry" for setting in settings
    )
    if not levels or goes_somewhere:
        return settings, ""
    # With a trace level but no file, Triton also starts, and writes no traces.
    return [setting for setting in settings if setting not in levels], (
        f"the trace setting {levels[0]} has no effect: set a file for traces with triton,file=PATH"
    )
