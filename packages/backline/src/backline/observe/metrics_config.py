"""Selects the latency metrics of the server, as Triton's option --metrics-config does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from backline_client.values.errors import InvalidArgument

_QUANTILES: Final = "summary_quantiles"
_SWITCHES: Final = ("counter_latencies", "histogram_latencies", "summary_latencies")


class MetricsConfig(Struct, frozen=True):
    """The selection of latency metrics: sums of latencies, histograms of first responses, and summaries with
    `quantiles`.
    """

    counters: bool = True
    histograms: bool = True
    summaries: bool = False
    #: Triton's defaults.
    quantiles: tuple[float, ...] = (0.5, 0.9, 0.95, 0.99, 0.999)


def parse_metrics_config(texts: Sequence[str]) -> MetricsConfig:
    """Parses settings of the form SETTING=VALUE. If a setting is repeated, the last value applies.

    Quantiles are written as for Triton, in the form QUANTILE:ERROR, separated by commas. The errors are
    checked but not used, because this server's quantiles are more precise. Raises InvalidArgument, which
    names the invalid part.
    """
    config = MetricsConfig()
    for text in texts:
        setting, _, value = text.partition("=")
        if setting == _QUANTILES:
            config = replace(config, quantiles=tuple(dict.fromkeys(map(_quantile, value.split(",")))))
            continue
        if setting not in _SWITCHES:
            known = ", ".join((*_SWITCHES, _QUANTILES))
            raise InvalidArgument(f"unknown setting '{setting}', expected one of {known}")
        if value not in ("true", "false"):
            raise InvalidArgument(f"{setting} is '{value}', expected true or false")
        on = value == "true"
        match setting:
            case "counter_latencies":
                config = replace(config, counters=on)
            case "histogram_latencies":
                config = replace(config, histograms=on)
            case _:
                config = replace(config, summaries=on)
    return config


def as_triton_reads(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the settings that Triton would use, in the form for `parse_metrics_config`, and a sentence
    about each part that Triton ignores.

    Triton ignores unknown settings. It also ignores values that equal the default, so a later value cannot
    undo a change. `histogram_latencies` is an exception, because its default in Backline is not Triton's. In
    a list of quantiles, Triton ignores invalid quantiles, or the whole list if no quantile is valid.
    """
    obeyed: list[str] = []
    ignored: list[str] = []
    for text in texts:
        setting, _, value = text.partition("=")
        parts = value.split(",") if setting == _QUANTILES else [value]
        right: list[str] = []
        for part in parts:
            try:
                parse_metrics_config([f"{setting}={part}"])
                right.append(part)
            except InvalidArgument as error:
                ignored.append(f"--metrics-config={setting}={part} has no effect: {error.message}")
        default = (setting, value) in (("counter_latencies", "true"), ("summary_latencies", "false"))
        if right and not default:
            obeyed.append(f"{setting}={','.join(right)}")
    return obeyed, ignored


def _quantile(text: str) -> float:
    quantile, colon, error = text.partition(":")
    try:
        read, allowed = float(quantile), float(error)
    except ValueError:
        read, allowed = -1.0, 0.0
    if not colon or not 0 <= read <= 1 or not allowed >= 0:
        raise InvalidArgument(
            f"{_QUANTILES} has '{text}', expected QUANTILE:ERROR with a quantile from 0 to 1, such as"
            " 0.99:0.001"
        )
    return read
