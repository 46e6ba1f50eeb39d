"""--trace-config, in Triton's syntax."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backline.observe.tracing.settings import SpanOptions, TraceConfig, parse_trace_config
from backline_client.values.errors import InvalidArgument
from docs.pages import code, read, table


def test_nothing_is_traced_by_default() -> None:
    assert parse_trace_config([]) == TraceConfig(
        levels=(), rate=1000, count=-1, mode="triton", file=None, log_frequency=0
    )


def test_settings_of_a_trace_file() -> None:
    texts = [
        "triton,file=/tmp/trace.json",
        "triton,log-frequency=50",
        "rate=100",
        "level=TIMESTAMPS",
        "level=TENSORS",
        "count=10",
    ]

    assert parse_trace_config(texts) == TraceConfig(
        ("TIMESTAMPS", "TENSORS"), 100, 10, "triton", Path("/tmp/trace.json"), 50
    )


def test_settings_of_spans() -> None:
    texts = [
        "mode=opentelemetry",
        "opentelemetry,url=http://host:4318/v1/traces",
        "opentelemetry,resource=a=b=c",
    ]
    texts += [
        "opentelemetry,resource=service.name=music",
        "opentelemetry,bsp_schedule_delay=100",
        "level=TIMESTAMPS",
    ]

    assert parse_trace_config(texts) == TraceConfig(
        ("TIMESTAMPS",),
        mode="opentelemetry",
        spans=SpanOptions(
            "http://host:4318/v1/traces", (("a", "b=c"), ("service.name", "music")), schedule_delay_ms=100
        ),
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["level"], "'level' is not of the form SETTING=VALUE"),
        (["lvel=TIMESTAMPS"], "unknown trace setting 'lvel': did you mean 'level'?"),
        (["opentelemetry,file=x"], "unknown trace setting 'opentelemetry,file'"),
        (["mode=jaeger"], "unknown trace mode 'jaeger', expected triton or opentelemetry"),
        (["level=MAX"], "unknown trace level 'MAX', expected OFF, TIMESTAMPS or TENSORS"),
        (["level=TIMESTAMPS"], "a trace level needs a destination"),
        (["mode=opentelemetry", "level=TENSORS"], "spans carry no tensors"),
        (["rate=often"], "Unable to parse 'trace_rate', got: often"),
        (["count=-2"], "Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
        (["rate=1", "rate=2"], "'rate' is given 2 times, expected once"),
        (["opentelemetry,resource=x"], "'x' is not a resource attribute"),
        (["opentelemetry,bsp_max_queue_size=0"], "expected a number above 0"),
        (
            ["opentelemetry,bsp_max_queue_size=100"],
            "bsp_max_export_batch_size must not exceed bsp_max_queue_size",
        ),
    ],
)
def test_invalid_settings_are_refused_with_a_reason(texts: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_trace_config(texts)

    assert message in refused.value.message


def _serve(*options: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "backline",
        "serve",
        "/nowhere",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
    ]
    return subprocess.run(
        [*command, *options], check=False, capture_output=True, text=True, timeout=60, env=environment
    )


def test_the_command_reports_invalid_settings() -> None:
    shown = _serve("--trace-config", "rat=1")

    assert shown.returncode == 2
    assert "--trace-config: unknown trace setting 'rat': did you mean 'rate'?" in shown.stderr


def test_an_unwritable_trace_file_stops_the_start() -> None:
    shown = _serve("--trace-config", "triton,file=/nowhere/trace.json", "--trace-config", "level=TIMESTAMPS")

    assert shown.returncode == 1
    assert "the trace file '/nowhere/trace.json' cannot be written" in shown.stderr


def test_spans_without_the_sdk_name_the_extra(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('No module named opentelemetry')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    shown = _serve("--trace-config", "mode=opentelemetry", environment={**os.environ, "PYTHONPATH": path})

    assert shown.returncode == 1
    assert "pip install 'backline[otel]'" in shown.stderr


def test_the_page_lists_settings_and_defaults() -> None:
    texts = {
        code(row["setting"])[0]: (code(row["default"]) or [""])[0]
        for row in table("docs/tracing.md", "setting")
    }

    config = TraceConfig()
    assert {name: texts.pop(name) for name in ("level", "rate", "count", "mode", "triton,log-frequency")} == {
        "level": "OFF",
        "rate": str(config.rate),
        "count": str(config.count),
        "mode": config.mode,
        "triton,log-frequency": str(config.log_frequency),
    }
    for name, default in texts.items():
        parse_trace_config([f"{name}={default or 'trace.json'}"])  # raises for one that is none
    assert "16384 elements" in read("docs/tracing.md")
