"""Statistics, configuration and classification: what Triton tells of a model, and the classes of an output."""

from __future__ import annotations

import time
from typing import Any

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.areas.infer import LEFT, RIGHT
from oip_conformance.row import Area, Level
from oip_conformance.target import Target, check, equal, key, ok, outputs, refused
from oip_conformance.tensors import Tensor, fp32

MUST, SHOULD, OBSERVED = Level
statistics = Area("statistics", "statistics")
configuration = Area("configuration", "configuration")
classification = Area("classification", "classification")


def _stats(t: Target, model: str) -> dict[str, Any]:
    entries = key(ok(t.get(t.path(model, "stats"))).json(), "model_stats", list)
    check(entries, f"statistics of '{t.name(model)}'", "an empty list")
    return dict(entries[0])


@statistics.row("all", MUST, spec.STATISTICS_ALL, "sum")
def all_models(t: Target) -> None:
    """Statistics without a model's name have an entry for every loaded model."""
    names = {key(e, "name", str) for e in key(ok(t.get("/v2/models/stats")).json(), "model_stats", list)}
    check(t.name("sum") in names, f"an entry '{t.name('sum')}'", sorted(names))


@statistics.row("model", MUST, spec.STATISTICS_MODEL, "sum")
def one_model(t: Target) -> None:
    """Statistics of a model have its name, counts that are numbers, and the count and time of successes."""
    entry = _stats(t, "sum")
    equal(entry.get("name"), t.name("sum"), "the name")
    for name in ("inference_count", "execution_count", "last_inference"):
        key(entry, name, int, "the statistics")
    success = key(key(entry, "inference_stats", dict), "success", dict)
    key(success, "count", int), key(success, "ns", int)


@statistics.row("inference-count", MUST, spec.INFERENCE_COUNT, "sum")
def inference_count(t: Target) -> None:
    """A request with a batch of three adds three to inference_count, and one success."""
    before = _stats(t, "sum")
    outputs(t.infer("sum", fp32("L", *[[1.0] * 4] * 3), fp32("R", *[[1.0] * 4] * 3)))
    after = _stats(t, "sum")
    equal(after["inference_count"] - before["inference_count"], 3, "the difference of inference_count:")
    counts = [entry["inference_stats"]["success"]["count"] for entry in (before, after)]
    equal(counts[1] - counts[0], 1, "the difference of success:")


@statistics.row("fail-count", MUST, spec.FAIL_COUNT, "failing")
def fail_count(t: Target) -> None:
    """A failed request adds one to the failures, and nothing to the successes."""
    before = _stats(t, "failing")["inference_stats"]
    t.infer("failing", Tensor("INPUT", "INT32", (1,), [1]))
    after = _stats(t, "failing")["inference_stats"]
    difference = [after[name].get("count", 0) - before[name].get("count", 0) for name in ("fail", "success")]
    equal(difference, [1, 0], "the differences of fail and success:")


@statistics.row("last-inference", MUST, spec.LAST_INFERENCE, "sum")
def last_inference(t: Target) -> None:
    """last_inference is the time of the last request, in milliseconds since 1970."""
    outputs(t.infer("sum", LEFT, RIGHT))
    distance = abs(time.time() * 1000 - _stats(t, "sum")["last_inference"])
    check(distance < 3_600_000, "a time of this hour, in milliseconds", _stats(t, "sum")["last_inference"])


@statistics.row("grpc", MUST, spec.STATISTICS_MODEL, "sum")
def grpc_statistics(t: Target) -> None:
    """ModelStatistics has the counts that the statistics over REST have."""
    answer = t.call("ModelStatistics", rpc.message("ModelRequest", name=t.name("sum"))).model_stats
    check(answer, "statistics", "none")
    entry = _stats(t, "sum")
    got = answer[0].inference_count, answer[0].execution_count, answer[0].inference_stats.success.count
    wanted = entry["inference_count"], entry["execution_count"], entry["inference_stats"]["success"]["count"]
    equal(got, wanted, "inference_count, execution_count and success")


@configuration.row("model", MUST, spec.CONFIG_JSON, "sum")
def config(t: Target) -> None:
    """A model's configuration has its name, its largest batch and its inputs."""
    document = ok(t.get(t.path("sum", "config"))).json()
    equal((document.get("name"), document.get("max_batch_size")), (t.name("sum"), 8), "name and max_batch_size")
    names = [key(entry, "name", str) for entry in key(document, "input", list)]
    equal(sorted(names), sorted(t.input_names("sum")), "the inputs")


@configuration.row("unknown-model", MUST, spec.CONFIG_ERROR)
def config_unknown(t: Target) -> None:
    """The configuration of a model that does not exist is an error."""
    refused(t.get("/v2/models/no_such_model/config"))


@configuration.row("grpc", MUST, spec.CONFIG_JSON, "sum")
def config_grpc(t: Target) -> None:
    """ModelConfig has the name and the largest batch that the configuration over REST has."""
    answer = t.call("ModelConfig", rpc.message("ModelRequest", name=t.name("sum"))).config
    equal((answer.name, answer.max_batch_size), (t.name("sum"), 8), "name and max_batch_size")


def _classes(t: Target, count: int, *rows: list[float]) -> Tensor:
    name = t.output_names("sum")[0]
    wanted = [{"name": name, "parameters": {"classification": count}}]
    zeros = [[0.0] * 4] * len(rows)
    return outputs(t.infer("sum", fp32("L", *rows), fp32("R", *zeros), outputs=wanted))[name]


@classification.row("shape", MUST, spec.CLASSES, "sum")
def classes_shape(t: Target) -> None:
    """An output with `classification` is BYTES of [batch, count]."""
    found = _classes(t, 2, [1.0, 5.0, 10.0, 4.0], [4.0, 3.0, 2.0, 1.0])
    equal((found.datatype, found.shape), ("BYTES", (2, 2)), "datatype and shape")


@classification.row("order", MUST, spec.CLASS_ORDER, "sum")
def classes_order(t: Target) -> None:
    """The classes are those of the highest values, the highest first."""
    found = _classes(t, 2, [1.0, 5.0, 10.0, 4.0])
    equal([item.decode().split(":")[1] for item in found.data], ["2", "1"], "the indices")


@classification.row("format", MUST, spec.CLASS_FORMAT, "sum")
def classes_format(t: Target) -> None:
    """A class is its value, a colon and its index."""
    first = _classes(t, 1, [1.0, 5.0, 10.0, 4.0]).data[0].decode().split(":")
    check(len(first) >= 2 and float(first[0]) == 10.0 and first[1] == "2", "10...:2", ":".join(first))
