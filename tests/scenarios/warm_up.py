"""Warm-up requests, executed before the first real one."""

from __future__ import annotations

from typing import Any

from scenarios.repository import Served, instance_group, tensor, tensors
from scenarios.scenario import Seen, scenario
from scenarios.session import Session
from scenarios.statistics import statistics


def warmed(*samples: str, instances: int = 1, further: str = "dynamic_batching { }\n") -> Served:
    """A model that reports its executions, with these warm-up samples."""
    shape = f"max_batch_size: 8\n{tensors([tensor('IN')], [tensor('SEEN', 'STRING')])}"
    runs = "\n".join(f"model_warmup {{ {sample} }}" for sample in samples)
    return Served(f"{shape}{instance_group(instances)}{further}{runs}\n", "warmed")


def sample(name: str, data: str = "zero_data: true", *, batch_size: int = 1, count: int = 0) -> str:
    values = f'inputs {{ key: "IN" value {{ data_type: TYPE_INT32 dims: [ 1 ] {data} }} }}'
    return f'name: "{name}" batch_size: {batch_size} {values} ' + (f"count: {count} " if count else "")


MODELS: dict[str, Served] = {
    "warmed": warmed(sample("one"), sample("two", batch_size=2)),
    "warmed_often": warmed(sample("often", count=3)),
}


def executed(session: Session, model: str) -> dict[str, Any]:
    """What was executed before the first request, and the statistics of it."""
    before = statistics(session, model)["model_stats"][0]
    answer = session.infer(model, 7)
    counted = {name: int(before.get(name, 0)) for name in ("inference_count", "execution_count")}
    success = int(before.get("inference_stats", {}).get("success", {}).get("count", 0))
    return {"runs": answer["SEEN"], **counted, "success": success}


@scenario("http")
def warm_ups_run_in_order_before_the_first_request(session: Session) -> Seen:
    return executed(session, "warmed")


@scenario("http")
def a_warm_up_may_run_several_times(session: Session) -> Seen:
    return executed(session, "warmed_often")
