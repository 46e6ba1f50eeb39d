"""Metrics that Python models define, on the server's metrics page."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

import backline
from backline.model import Counter, Gauge, Histogram
from support.repositories import put
from support.server import ServerProcess, metrics_page, serve

COUNTING = """
from backline.model import Counter, Gauge, Histogram

words = Counter("words_read", "Words of all texts")
length = Gauge("last_length", "Characters of the last text")
spread = Histogram("text_length", "Characters of texts", buckets=[2, 4])


class Model:
    instances = 2

    def predict(self, text: str) -> str:
        words.increment(len(text.split()), language="en")
        length.set(len(text))
        spread.observe(len(text))
        return text
"""
OTHER_KIND = """
from backline.model import Gauge

words = Gauge("words_read", "Words")


class Model:
    def predict(self, text: str) -> str:
        return text
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    put(folder / "models" / "counting" / "1" / "model.py", COUNTING)
    put(folder / "models" / "other" / "1" / "model.py", OTHER_KIND)
    options = ("--model-control-mode", "explicit", "--load-model", "counting")
    with serve(folder / "models", folder / "log", *options) as running:
        yield running


def ask(server: ServerProcess, text: str) -> None:
    with backline.connect(server.url) as client:
        client["counting"](np.array([text.encode()], object))


WORDS = 'words_read{language="en",model="counting",version="1"}'


def test_a_counter_is_the_sum_over_all_workers_and_outlives_them(server: ServerProcess) -> None:
    for _ in range(8):
        ask(server, "one two three")
    assert metrics_page(server)[WORDS] == 24

    for worker in psutil.Process(server.process.pid).children():
        worker.kill()
        worker.wait(10)
    ask(server, "four")

    assert metrics_page(server)[WORDS] == 25


def test_a_gauge_has_its_last_value_and_a_histogram_counts_by_bucket(server: ServerProcess) -> None:
    before = metrics_page(server)
    ask(server, "abc")
    after = metrics_page(server)

    assert after['last_length{model="counting",version="1"}'] == 3
    buckets = {
        bound: f'text_length_bucket{{le="{bound}",model="counting",version="1"}}'
        for bound in ("2", "4", "+Inf")
    }
    grown = {bound: after[name] - before.get(name, 0) for bound, name in buckets.items()}
    assert grown == {"2": 0, "4": 1, "+Inf": 1}


def test_redeclaring_a_metric_with_another_kind_fails_the_load(server: ServerProcess) -> None:
    with (
        backline.connect(server.url) as client,
        pytest.raises(Exception, match="'words_read' is a counter already"),
    ):
        client.load("other")


def test_metrics_disappear_with_their_model(server: ServerProcess) -> None:
    ask(server, "text")
    with backline.connect(server.url) as client:
        client.unload("counting")

    end = time.monotonic() + 20
    while WORDS in metrics_page(server):
        assert time.monotonic() < end


def test_without_a_server_metrics_stay_local() -> None:
    words = Counter("words", "")
    words.increment(2, language="en")
    words.increment(language="en")
    level = Gauge("level", "")
    level.set(5)
    level.increment(-2)
    spread = Histogram("spread", "")
    spread.observe(3.0)

    assert (words.value(language="en"), words.value(), level.value(), spread.value()) == (3, 0, 3, 1)


def test_invalid_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot grow by -1; use a Gauge"):
        Counter("words", "").increment(-1)
    with pytest.raises(ValueError, match="expected ascending numbers"):
        Histogram("spread", "", buckets=[2, 1])
