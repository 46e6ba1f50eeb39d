"""Writes the page for Prometheus, with the metrics of the engine, of models, of the process and of the
machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.observe.exposition import CONTENT_TYPE, comment, exposed, label_text, number
from backline.observe.families import families
from backline.observe.metrics_config import MetricsConfig
from backline.observe.scaling import NO_DEMAND, STEADY, DemandCounters, Scaling, ScalingPolicy, ScalingSignal
from backline.system.cores import usable_cores
from backline_client.values.tensor import in_pieces

if TYPE_CHECKING:
    from backline.observe.process_metrics import ProcessMetrics

#: The number of samples that are joined into one text per step.
_TOGETHER = 64
#: The minimum length of a block, in characters. Pieces are joined into blocks because a page for 1,000 models
#: has thousands of pieces, and the HTTP layer would compress each piece in a separate step.
_BLOCK = 64 * 1024


def batched(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yields the texts in groups of `size`."""
    return (texts[start : start + size] for start in range(0, len(texts), size))


def _blocks(pieces: Iterable[str]) -> Iterator[bytes]:
    """Joins the pieces into blocks for the HTTP layer. Yields b"" for each piece that does not complete a
    block.
    """
    block: list[str] = []
    size = 0
    for piece in pieces:
        block.append(piece)
        size += len(piece)
        yield "".join(block).encode() if size >= _BLOCK else b""
        if size >= _BLOCK:
            block, size = [], 0
    yield "".join(block).encode()


def default_target() -> float:
    """Returns the number of requests in flight at which a server counts as fully used: two per core."""
    return 2.0 * usable_cores()


class Metrics:
    """Writes the page in small pieces. Between pieces the event loop does other work, so that a scrape does
    not delay requests.

    All numbers of a version are read at the same time; the numbers of different versions may be read
    milliseconds apart.
    """

    def __init__(
        self, engine: Engine, scaling: ScalingPolicy | None = None, config: MetricsConfig | None = None
    ) -> None:
        """`scaling` is the policy for the autoscaler metrics; `config` selects the latency metrics.

        If summaries are selected, the versions that are added to the engine from now on collect the data for
        the summaries.
        """
        config = config or MetricsConfig()
        self._engine = engine
        engine.summarises_latencies = config.summaries
        self._families = families(config)
        self._scaling = Scaling(scaling or ScalingPolicy(default_target()))
        #: The counters of each version at the last reading.
        self._counted: dict[tuple[str, str], DemandCounters] = {}
        #: The sum of the counters of all versions so far, including unloaded ones.
        self._demand = NO_DEMAND
        self._signal = STEADY
        self._process: ProcessMetrics | None = None
        self._writing = asyncio.Lock()
        #: The number of pages started so far.
        self._begun = 0
        #: The latest page; None while it is being written.
        self._page: list[bytes] | None = None

    async def page(self) -> tuple[bytes, list[bytes]]:
        """Returns the content type of the page, and its text in pieces.

        Only one page is written at a time. All scrapes that arrive while a page is being written share the
        next page.
        """
        begun = self._begun
        async with self._writing:
            # A page that was begun before this scrape arrived may lack the latest numbers.
            if self._page is None or self._begun == begun:
                self._begun += 1
                self._page = None
                self._page = await self._write()
            return CONTENT_TYPE, self._page

    async def _write(self) -> list[bytes]:
        # This runs on a thread, because it reads files. It does not run together with the rest, because each
        # would wait for the GIL while the other holds it.
        process = await asyncio.get_running_loop().run_in_executor(None, self._of_process)
        return [*filter(None, await in_pieces(_blocks(self._pieces()))), process]

    def _pieces(self) -> Iterator[str]:
        """Yields the page in pieces. Producing a piece takes microseconds. Yields an empty piece after each
        step that produces no text yet.
        """
        texts = [[family.comment] for family in self._families]
        for model in self._engine.models():
            labels = _labels(model, self._engine.namespaces.get(model.name))
            used = model.statistics.used
            for family, text in zip(self._families, texts, strict=True):
                if used or not family.from_first_use:
                    text.append(family.write(model, labels))
            yield ""
        for family, text in zip(self._families, texts, strict=True):
            if not family.if_any or any(text[1:]):
                yield from map("".join, batched(text, _TOGETHER))
        yield from self._of_cache()
        yield from self._of_names()
        yield from self._of_scaling()
        for custom in tuple(self._engine.custom_metrics):
            yield from exposed(custom)

    def _of_cache(self) -> Iterator[str]:
        """Yields the metrics of the whole response cache, if it is in memory. As in Triton, they are
        gauges.
        """
        cache = self._engine.response_cache
        if cache is None:
            return
        for name, text, value in (
            ("util", "Share of the response cache's bytes that are in use", cache.used / cache.size),
            ("num_entries", "Responses in the response cache", len(cache)),
            ("num_hits", "Lookups that found a response", cache.hits),
            ("num_misses", "Lookups that found no response", cache.misses),
            ("num_lookups", "Lookups in the response cache", cache.hits + cache.misses),
            ("num_evictions", "Responses removed to make room for others", cache.evictions),
            ("lookup_duration", "Time of all lookups, in microseconds", cache.lookup_ns // 1000),
            ("insertion_duration", "Time of all insertions, in microseconds", cache.insertion_ns // 1000),
        ):
            yield f"{comment(f'nv_cache_{name}', 'gauge', text)}nv_cache_{name} {number(value)}\n"

    def _of_names(self) -> Iterator[str]:
        """Yields the metrics that are kept per model rather than per version: which version each label
        points to, and the number and total time of loads.
        """
        engine = self._engine
        yield comment("backline_model_label", "gauge", "1 for the version that the label points to")
        for name in engine.names():
            yield ""
            for label, version in engine.labels(name).items():
                labels = label_text((("model", name), ("label", label), ("version", version)))
                yield f"backline_model_label{{{labels}}} 1\n"
        yield comment("backline_model_loads_total", "counter", "Completed loads, by outcome")
        seconds = [
            comment("backline_model_load_seconds_total", "counter", "Time of successful loads, in seconds")
        ]
        for name in sorted(engine.loads):
            counts = engine.loads.get(name)
            if counts is None:  # the model was removed between two pieces
                continue
            model = label_text((("model", name),))
            yield (
                f'backline_model_loads_total{{{model},outcome="success"}} {counts.succeeded}\n'
                f'backline_model_loads_total{{{model},outcome="failure"}} {counts.failed}\n'
            )
            seconds.append(f"backline_model_load_seconds_total{{{model}}} {counts.seconds!r}\n")
        yield from map("".join, batched(seconds, _TOGETHER))

    def signal(self) -> ScalingSignal:
        """Returns the current signal for autoscalers."""
        for _ in self._count():
            pass
        return self._signal

    def _count(self) -> Iterator[str]:
        """Updates the signal in small steps; yields after each step. Requests to ensembles do not count,
        because the requests to their steps are counted.
        """
        waiting = 0
        gone = set(self._counted)
        for model in self._engine.models():
            yield ""
            key = model.name, model.version
            gone.discard(key)
            if model.config.ensemble is not None:
                continue
            demand = _demand(model)
            # The counters of a version that was unloaded and loaded again start at zero.
            self._demand += demand.since(self._counted.get(key, NO_DEMAND))
            self._counted[key] = demand
            waiting += model.serving.queue.pending
        for key in gone:
            self._counted.pop(key, None)
        self._signal = self._scaling.read(monotonic(), self._demand, waiting)

    def _of_scaling(self) -> Iterator[str]:
        yield from self._count()
        signal = self._signal
        utilisation = comment("backline_utilisation", "gauge", "Requests in flight as a share of the target")
        desired = comment("backline_desired_replicas", "gauge", "Servers needed for this server's load")
        yield (
            f"{utilisation}backline_utilisation {signal.utilisation!r}\n"
            f"{desired}backline_desired_replicas {signal.desired_replicas!r}\n"
        )

    def _of_process(self) -> bytes:
        if self._process is None:
            # Imported here because most starts need no metrics.
            from backline.observe.process_metrics import ProcessMetrics

            self._process = ProcessMetrics()
        return self._process.text()


def _demand(model: Model) -> DemandCounters:
    counted = model.statistics
    answered = counted.success.count + counted.fail.count + counted.given_up.count
    spent = (counted.success.ns + counted.fail.ns + counted.given_up.ns) / 1e9
    return DemandCounters(spent, answered + counted.rejected_late, counted.rejected_late)


def _labels(model: Model, namespace: str | None) -> str:
    """Returns the labels of a version's samples, in alphabetical order as in Triton."""
    tags = model.config.metric_tags
    return label_text(
        (
            *((f"_{name}", tags[name]) for name in tags),
            ("model", model.name),
            *(() if namespace is None else (("namespace", namespace),)),
            ("version", model.version),
        )
    )
