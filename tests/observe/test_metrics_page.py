"""The metrics page is written without blocking the event loop, and parses whatever models are called."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic_ns, thread_time
from types import FrameType

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState
from backline.engine.statistics import FIRST_RESPONSE_FAMILY, ResponseStatistics
from backline.engine.ticket import Ticket
from backline.observe.metrics import Metrics
from backline.observe.metrics_config import MetricsConfig
from backline.schedule.cache.cache import LocalCache
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.tools import tool

#: Seconds of CPU time on the event loop for one piece: the target is 0.5 ms plus one model.
LONGEST_TURN = 0.002
ALERTS = Path(__file__).parents[2] / "deploy" / "helm" / "backline" / "files" / "alerts.yaml"


def add_model(engine: Engine, name: str, version: str = "1") -> Model:
    model = Model(name, version, ModelConfig(name))
    model.state = ModelState.READY
    engine.add(model)
    return model


def full_engine(models: int) -> Engine:
    """Models that have served batches of several sizes."""
    engine = Engine()
    for number in range(models):
        model = add_model(engine, f"model_{number}")
        request = Ticket(InferRequest(model.name, {}), lambda *_: None)
        for size in (1, 2, 4, 8, 16):
            now = monotonic_ns()
            model.statistics.record_batch([request] * size, size, now, now, now, now)
        engine.record_load(model.name, 0.1, succeeded=True)
    engine.refresh()
    return engine


def values(text: list[bytes]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(b"".join(text).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_page_of_1000_models_blocks_the_event_loop_for_two_milliseconds_at_most() -> None:
    """Measures CPU time, so that other programs on the machine do not count."""

    async def longest_turn() -> float:
        metrics = Metrics(full_engine(1000))
        await metrics.page()  # imports libraries
        longest = 0.0
        page = asyncio.ensure_future(metrics.page())
        while not page.done():
            began = thread_time()
            await asyncio.sleep(0)  # one turn of the loop
            longest = max(longest, thread_time() - began)
        assert len(b"".join(page.result()[1])) > 1_000_000
        return longest

    # A garbage collection or a preempted interpreter may spoil one attempt.
    assert any(asyncio.run(longest_turn()) < LONGEST_TURN for _ in range(8))


def test_no_piece_of_a_page_looks_at_all_models() -> None:
    """Counts calls of functions, which unlike times do not depend on the machine."""
    models = 400
    calls = 0

    def called(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    pieces = Metrics(full_engine(models))._pieces()
    longest = 0
    before = sys.getprofile()
    sys.setprofile(called)
    try:
        for _ in pieces:
            longest, calls = max(longest, calls), 0
    finally:
        sys.setprofile(before)

    assert longest < models / 2


def test_scrapes_during_a_page_share_the_next_page() -> None:
    """It is one page for all, and includes everything counted before they asked."""

    async def ask() -> None:
        engine = full_engine(50)
        metrics = Metrics(engine)
        first = asyncio.ensure_future(metrics.page())
        await asyncio.sleep(0)
        model = engine.find("model_0")
        model.statistics.cancelled = 7
        later = [asyncio.ensure_future(metrics.page()) for _ in range(3)]
        (_, earlier), *pages = await asyncio.gather(first, *later)

        assert pages[0][1] is pages[1][1] is pages[2][1]
        assert pages[0][1] is not earlier
        key = (
            "nv_inference_request_failure_total",
            frozenset({("model", "model_0"), ("version", "1"), ("reason", "CANCELED")}),
        )
        assert values(pages[0][1])[key] == 7

    asyncio.run(ask())


def test_a_failed_page_is_not_shared() -> None:
    async def ask() -> None:
        engine = full_engine(1)
        metrics = Metrics(engine)
        broken = engine.find("model_0")
        broken.statistics.batches[1] = None  # type: ignore[assignment]
        first, second = asyncio.ensure_future(metrics.page()), asyncio.ensure_future(metrics.page())
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [AttributeError, AttributeError]
        del broken.statistics.batches[1]
        assert (await metrics.page())[1]

    asyncio.run(ask())


def test_names_with_special_characters_survive_a_round_trip() -> None:
    engine = Engine()
    name = 'a "model" of 100 %s\\\n{x}'
    add_model(engine, name).statistics.rejected_invalid = 1
    engine.set_labels(name, {'sta"ble': "1"})
    engine.custom_metrics.declare(object(), "heard", "counter", "lines\nof \\ help")
    engine.custom_metrics.increment("heard", {"my-label": name, "2nd": "x"}, float("inf"))
    engine.custom_metrics.declare(object(), "bare", "gauge", "without labels")
    engine.custom_metrics.set("bare", {}, -1.5)

    _, text = asyncio.run(Metrics(engine).page())
    read = values(text)

    assert read["backline_model_ready", frozenset({("model", name), ("version", "1")})] == 1
    assert (
        read[
            "backline_request_duration_seconds_bucket",
            frozenset({("model", name), ("version", "1"), ("le", "+Inf")}),
        ]
        == 0
    )
    assert (
        read["backline_model_label", frozenset({("model", name), ("version", "1"), ("label", 'sta"ble')})]
        == 1
    )
    assert read["heard_total", frozenset({("my_label", name), ("_2nd", "x")})] == float("inf")
    assert read["bare", frozenset()] == -1.5


def lines_of(text: str, model: str) -> list[str]:
    return [line for line in text.splitlines() if f'model="{model}"' in line]


def test_a_model_without_requests_has_at_most_20_lines_and_all_names_are_declared() -> None:
    """A server of thousands of models has as many lines for each of them."""
    engine = Engine()
    add_model(engine, "idle")
    engine.record_load("idle", 0.1, succeeded=True)
    idle = b"".join(asyncio.run(Metrics(engine).page())[1]).decode()
    used = b"".join(asyncio.run(Metrics(full_engine(1)).page())[1]).decode()

    assert len(lines_of(idle, "idle")) <= 20 < len(lines_of(used, "model_0"))
    declared = re.findall(r"^# (?:HELP|TYPE) \S+", idle, re.MULTILINE)
    assert declared == re.findall(r"^# (?:HELP|TYPE) \S+", used, re.MULTILINE)
    assert len(declared) == len(set(declared))


def test_the_first_requests_and_failures_count_in_rates() -> None:
    """For rate(), a counter that appears with the value 1 has not grown. So Triton's counters are 0 from the
    start, and the first request of any kind brings all other counters with it.
    """
    engine = Engine()
    model = add_model(engine, "add1")
    read = [values(asyncio.run(Metrics(engine).page())[1])]
    for reason in ("rejected_invalid", "cancelled"):
        setattr(model.statistics, reason, 1)
        read.append(values(asyncio.run(Metrics(engine).page())[1]))

    def series(name: str, **labels: str) -> list[float | None]:
        key = name, frozenset({("model", "add1"), ("version", "1"), *labels.items()})
        return [page.get(key) for page in read]

    assert series("nv_inference_request_success_total") == [0, 0, 0]
    assert series("nv_inference_request_failure_total", reason="OTHER") == [0, 1, 1]
    assert series("nv_inference_request_failure_total", reason="CANCELED") == [0, 0, 1]
    assert series("backline_request_failures_total", reason="invalid") == [None, 1, 1]
    assert series("backline_request_failures_total", reason="cancelled") == [None, 0, 1]
    assert series("backline_request_failures_total", reason="failed") == [None, 0, 0]
    assert series("backline_request_duration_seconds_bucket", le="+Inf") == [None, 0, 0]
    assert series("backline_queue_duration_seconds_count") == [None, 0, 0]


def test_alerts_read_rates_of_counters_that_are_there_from_the_start() -> None:
    engine = Engine()
    add_model(engine, "idle")
    engine.record_load("idle", 0.1, succeeded=True)
    text = b"".join(asyncio.run(Metrics(engine).page())[1]).decode()

    read = set(re.findall(r"(?:rate|increase)\((\w+)", ALERTS.read_text()))

    assert len(read) > 2
    assert [name for name in read if f'\n{name}{{model="idle"' not in text] == []


def test_a_stream_that_has_not_ended_is_on_the_page() -> None:
    engine = Engine()
    responses = add_model(engine, "stream").statistics.responses = ResponseStatistics()
    add_model(engine, "idle").statistics.responses = ResponseStatistics()
    responses.succeeded(0, 0, 0, 1, 1, empty=False)

    text = b"".join(asyncio.run(Metrics(engine).page())[1]).decode()

    assert re.findall("^backline_responses_total{(.+)} (.+)$", text, re.MULTILINE) == [
        (f'model="stream",version="1",outcome="{outcome}"', count)
        for outcome, count in (("success", "1"), ("failure", "0"), ("empty", "0"), ("cancelled", "0"))
    ]


def test_promtool_complains_only_about_tritons_names(tmp_path: Path) -> None:
    """With and without requests, and with the counters and summaries of a response cache."""
    engine = full_engine(2)
    metrics = Metrics(engine, config=MetricsConfig(summaries=True))
    add_model(engine, "idle")
    cached = add_model(engine, "cached").statistics
    cached.cached = True
    cached.responses = ResponseStatistics()
    cached.record_call("idle", "success", 1)
    page = tmp_path / "page"
    page.write_bytes(b"".join(asyncio.run(metrics.page())[1]))

    with page.open() as text:
        checked = subprocess.run(
            [tool("promtool"), "check", "metrics"], stdin=text, capture_output=True, text=True, check=False
        )

    assert checked.returncode in (0, 3), checked.stderr  # 1 means that the page cannot be read
    complaints = (checked.stdout + checked.stderr).splitlines()
    assert [line for line in complaints if not line.startswith("nv_")] == []


def test_stream_responses_are_counted_by_outcome_and_the_first_by_time() -> None:
    engine = Engine()
    model = add_model(engine, "stream")
    responses = model.statistics.responses = ResponseStatistics()
    second = 1_000_000_000
    responses.succeeded(0, 0, 0, second, second, empty=False)
    responses.succeeded(1, 0, second, 2 * second, 2 * second, empty=False)
    responses.succeeded(2, 0, 2 * second, 2 * second, 2 * second, empty=True)
    responses.failed(0, 0, second)
    responses.cancelled(1, 0, second)
    add_model(engine, "plain")

    read = values(asyncio.run(Metrics(engine).page())[1])

    labels = {("model", "stream"), ("version", "1")}
    outcomes = {
        outcome: read["backline_responses_total", frozenset({*labels, ("outcome", outcome)})]
        for outcome in OUTCOMES
    }
    assert outcomes == {"success": 2, "empty": 1, "failure": 1, "cancelled": 1}
    first = "nv_inference_first_response_histogram_ms"
    buckets = {
        bound: read[f"{first}_bucket", frozenset({*labels, ("le", bound)})]
        for bound in ("100", "500", "2000", "5000", "+Inf")
    }
    assert buckets == {"100": 0, "500": 0, "2000": 1, "5000": 1, "+Inf": 1}
    assert (read[f"{first}_count", frozenset(labels)], read[f"{first}_sum", frozenset(labels)]) == (1, 1000)
    assert not [name for name, labels in read if name.startswith(first) and ("model", "plain") in labels]


def test_first_responses_use_the_models_buckets_and_restart_when_they_change() -> None:
    engine = Engine()
    responses = add_model(engine, "stream").statistics.responses = ResponseStatistics()
    responses.succeeded(0, 0, 0, 1, 30_000_000, empty=False)
    responses.measure_first((10, 50.5))
    responses.succeeded(0, 0, 0, 1, 50_500_000, empty=False)
    responses.measure_first((10, 50.5))

    read = values(asyncio.run(Metrics(engine).page())[1])

    counted = {
        dict(labels)["le"]: count
        for (name, labels), count in read.items()
        if name == f"{FIRST_RESPONSE_FAMILY}_bucket"
    }
    assert counted == {"10": 0, "50.5": 1, "+Inf": 1}
    assert read[f"{FIRST_RESPONSE_FAMILY}_sum", frozenset({("model", "stream"), ("version", "1")})] == 50.5


OUTCOMES = ("success", "empty", "failure", "cancelled")


def test_machine_metrics_have_tritons_names() -> None:
    read = values(asyncio.run(Metrics(Engine()).page())[1])

    assert 0 <= read["nv_cpu_utilization", frozenset()] <= 1
    assert 0 < read["nv_cpu_memory_used_bytes", frozenset()] < read["nv_cpu_memory_total_bytes", frozenset()]


def test_metric_tags_become_labels() -> None:
    engine = Engine()
    model = add_model(engine, "add1")
    model.config = ModelConfig("add1", metric_tags={"team": 'a"b', "cost": "1"})

    read = values(asyncio.run(Metrics(engine).page())[1])

    labels = {("model", "add1"), ("version", "1"), ("_team", 'a"b'), ("_cost", "1")}
    assert read["nv_inference_count_total", frozenset(labels)] == 0
    assert read["nv_inference_request_failure_total", frozenset({*labels, ("reason", "OTHER")})] == 0
    assert not [name for name, given in read if ("model", "add1") in given and not labels <= given]


def test_lines_are_written_as_tritons() -> None:
    """Labels are in alphabetical order, no number has an exponent, and only cached models count hits."""
    engine = Engine()
    add_model(engine, "plain")
    add_model(engine, "kept", version="a,version=b").statistics.cached = True

    page = b"".join(asyncio.run(Metrics(engine).page())[1]).decode()

    assert 'nv_inference_request_failure{model="plain",reason="OTHER",version="1"} 0\n' in page
    assert 'nv_inference_request_failure{model="kept",reason="OTHER",version="a,version=b"} 0\n' in page
    assert not re.search(r"^nv_\S+ \S+e[+-]", page, re.MULTILINE)
    assert [line for line in page.splitlines() if line.startswith("nv_cache_num_hits")] == [
        'nv_cache_num_hits_per_model{model="kept",version="a,version=b"} 0'
    ]


def test_without_a_cache_there_are_no_cache_metrics() -> None:
    engine = Engine()
    add_model(engine, "plain")

    assert b"nv_cache" not in b"".join(asyncio.run(Metrics(engine).page())[1])


#: The metrics of latencies on a page of Triton 2.51, of a model with a response cache and one without.
_SUMS = {
    *(f"nv_inference_{part}_duration_us" for part in ("request", "queue")),
    *(f"nv_inference_compute_{part}_duration_us" for part in ("input", "infer", "output")),
    *(f"nv_cache_{name}_per_model" for name in ("num_hits", "num_misses", "hit_duration", "miss_duration")),
}
_SUMMARIES = {
    *(f"nv_inference_{part}_summary_us" for part in ("request", "queue")),
    *(f"nv_inference_compute_{part}_summary_us" for part in ("input", "infer", "output")),
    *(f"nv_cache_{name}_summary_per_model" for name in ("hit", "miss")),
}


def page_with(config: MetricsConfig) -> str:
    """The page of a server with this configuration, after a request to each of two models."""
    engine = Engine()
    metrics = Metrics(engine, config=config)
    for name in ("cached", "plain"):
        model = add_model(engine, name)
        model.statistics.cached = name == "cached"
        ticket = Ticket(InferRequest(name, {}), lambda *_: None)
        arrived = ticket.request.arrived_ns
        times = (arrived + us * 1000 for us in (10, 30, 60, 100))
        model.statistics.record_batch([ticket], 1, *times)
        model.statistics.record_cache_miss(7000)
    return b"".join(asyncio.run(metrics.page())[1]).decode()


@pytest.mark.parametrize(
    ("config", "present", "absent"),
    [
        (MetricsConfig(), _SUMS, _SUMMARIES),
        (MetricsConfig(counters=False), set(), _SUMS | _SUMMARIES),
        (MetricsConfig(summaries=True), _SUMS | _SUMMARIES, set()),
    ],
    ids=["default", "without-counters", "with-summaries"],
)
def test_the_configuration_decides_which_latency_metrics_there_are(
    config: MetricsConfig, present: set[str], absent: set[str]
) -> None:
    names = set(re.findall(r"^# TYPE (\S+)", page_with(config), re.MULTILINE))

    assert present <= names
    assert not absent & names
    assert "nv_inference_request_success" in names


def test_a_summary_has_the_lines_of_triton() -> None:
    text = page_with(MetricsConfig(summaries=True, quantiles=(0.5, 0.999)))

    assert (
        "# TYPE nv_inference_compute_infer_summary_us summary\n"
        'nv_inference_compute_infer_summary_us_count{model="cached",version="1"} 1\n'
        'nv_inference_compute_infer_summary_us_sum{model="cached",version="1"} 30\n'
        'nv_inference_compute_infer_summary_us{model="cached",version="1",quantile="0.5"} 30\n'
        'nv_inference_compute_infer_summary_us{model="cached",version="1",quantile="0.999"} 30\n'
        'nv_inference_compute_infer_summary_us_count{model="plain",version="1"} 1\n'
    ) in text
    assert 'nv_cache_hit_summary_per_model{model="cached",version="1",quantile="0.5"} NaN\n' in text
    # As in Triton, a model whose responses are cached has no summary of requests; others have none of hits.
    assert 'nv_inference_request_summary_us_count{model="cached"' not in text
    assert 'nv_cache_miss_summary_per_model_count{model="plain"' not in text
    assert 'nv_inference_request_summary_us_sum{model="plain",version="1"} 100\n' in text


def test_versions_have_the_label_namespace_where_names_are_made_unique_by_the_repository() -> None:
    engine = Engine()
    add_model(engine, "add1")
    engine.namespaces = {"add1": "/srv/models"}

    text = b"".join(asyncio.run(Metrics(engine).page())[1]).decode()

    assert 'nv_inference_count{model="add1",namespace="/srv/models",version="1"} 0\n' in text
    assert (
        'nv_inference_request_failure{model="add1",namespace="/srv/models",reason="BACKEND",version="1"} 0\n'
        in text
    )


def test_the_whole_cache_has_the_gauges_of_triton() -> None:
    engine = Engine()
    data = np.zeros(100, np.uint8)
    cache = engine.response_cache = LocalCache(1600)
    for key in (b"a", b"b"):  # each of about 820 bytes, so the second one takes the place of the first
        cache.look_up(key, lambda outputs: None)
        cache.insert(key, [Tensor("y", DataType.UINT8, data.shape, data)])
    cache.look_up(b"b", lambda outputs: None)

    read = values(asyncio.run(Metrics(engine).page())[1])

    gauges = {
        name.removeprefix("nv_cache_"): value for (name, _), value in read.items() if "nv_cache" in name
    }
    assert 0 < gauges.pop("util") < 1
    assert gauges.pop("lookup_duration") >= 0
    assert gauges.pop("insertion_duration") >= 0
    assert gauges == {
        "num_entries": 1,
        "num_hits": 1,
        "num_misses": 2,
        "num_lookups": 3,
        "num_evictions": 1,
    }
