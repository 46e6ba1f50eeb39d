"""How the models of a deployment are divided among its replicas, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from backline.lifecycle.options import LifecycleOptions
from backline.plugins.ray.deployment import divided
from backline.plugins.ray.needs import read_needs
from backline.plugins.ray.shards import ModelNeed, Shard, place
from backline.plugins.ray.spec import ReplicaSpec, replica_options
from backline.server import ServerOptions
from backline_client.values.errors import InvalidArgument
from support.repositories import put

IDENTITY = """backend: "identity" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
ENSEMBLE = """platform: "ensemble" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling { step [ { model_name: "small" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } ] }
"""


def need(name: str, memory: float = 0, gpus: float = 0, *, steps: tuple[str, ...] = ()) -> ModelNeed:
    return ModelNeed(name, {"memory": memory, "num_gpus": gpus}, steps)


def models(shards: tuple[Shard, ...]) -> list[tuple[str, ...]]:
    return [shard.models for shard in shards]


def test_models_share_a_replica_as_far_as_its_memory_reaches() -> None:
    shards = place([need("a", 3), need("b", 5), need("c", 4), need("d", 2)], {"memory": 8})

    assert models(shards) == [("a", "b"), ("c", "d")]
    assert [shard.reserved for shard in shards] == [{"memory": 8}, {"memory": 8}]


def test_a_model_that_is_too_large_gets_a_replica_of_its_size() -> None:
    large, small = place([need("a", 2), need("huge", 20)], {"memory": 8, "num_cpus": 1})

    assert (large.models, large.reserved) == (("huge",), {"memory": 20, "num_cpus": 1})
    assert (small.models, small.reserved) == (("a",), {"memory": 8, "num_cpus": 1})


def test_models_with_a_gpu_keep_to_themselves() -> None:
    shards = place([need("a"), need("b", gpus=0.5), need("c", gpus=0.5), need("d")], {"num_gpus": 1})

    assert sorted(models(shards)) == [("a", "d"), ("b", "c")]


def test_without_gpus_for_a_replica_each_model_with_one_gets_its_own() -> None:
    shards = place([need("a"), need("b", gpus=1), need("c", gpus=1)], {"num_cpus": 1})

    assert sorted(models(shards)) == [("a",), ("b",), ("c",)]
    assert [shard.reserved.get("num_gpus", 0) for shard in shards] == [1, 1, 0]


def test_an_ensemble_is_in_one_replica_with_its_steps() -> None:
    needs = [need("a", 4), need("e", steps=("f", "b")), need("b", 3), need("f", steps=("c",)), need("c", 3)]

    assert models(place(needs, {"memory": 6})) == [("b", "c", "e", "f"), ("a",)]


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([0, 0.5, 1]), st.lists(st.integers(0, 9), max_size=2)),
        max_size=10,
    ),
    st.randoms(use_true_random=False),
)
def test_every_model_is_in_one_shard_that_has_room_for_it(
    drawn: list[tuple[int, float, list[int]]], order: object
) -> None:
    needs = [need(str(i), m, g, steps=tuple(map(str, s))) for i, (m, g, s) in enumerate(drawn)]
    room = {"memory": 10.0, "num_gpus": 1.0}
    shards = place(needs, room)

    by_name = {one.name: one for one in needs}
    assert sorted(name for shard in shards for name in shard.models) == sorted(by_name)
    for shard in shards:
        for amount, reserved in shard.reserved.items():
            assert sum(by_name[name].amounts.get(amount, 0) for name in shard.models) <= reserved
        for name in shard.models:
            assert {step for step in by_name[name].steps if step in by_name} <= set(shard.models)
    order.shuffle(needs)  # type: ignore[attr-defined]
    assert place(needs, room) == shards


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, size in (("large", 30_000_000), ("small", 1_000_000)):
        put(tmp_path / name / "config.pbtxt", IDENTITY)
        put(tmp_path / name / "1" / "weights", "x" * size)
        put(tmp_path / name / "2" / "weights", "x" * size)
    given = 'parameters { key: "backline.ray_actor_options.memory" value { string_value: "5e9" } }'
    put(tmp_path / "told" / "config.pbtxt", IDENTITY + given)
    put(tmp_path / "told" / "1" / "weights", "")
    put(tmp_path / "both" / "config.pbtxt", ENSEMBLE)
    put(tmp_path / "both" / "1" / "empty", "")
    return tmp_path


def test_the_memory_of_a_model_is_configured_or_follows_from_the_served_files(repository: Path) -> None:
    needs = {one.name: one for one in asyncio.run(read_needs([str(repository)]))}

    assert needs["told"].amounts == {"memory": 5e9}
    assert needs["both"].steps == ("small",)
    large, small = needs["large"].amounts["memory"], needs["small"].amounts["memory"]
    assert 30_000_000 <= large < 120_000_000
    assert large == pytest.approx(30 * small, rel=0.01)


def test_each_shard_has_its_specification(repository: Path) -> None:
    spec = ReplicaSpec(_options(repository), {"num_cpus": 2, "memory": 200_000_000, "resources": {"disk": 1}})

    told, others = divided(spec)

    assert (told.models, others.models) == (("told",), ("both", "large", "small"))
    assert told.actor_options == {**spec.actor_options, "memory": 5_000_000_000}
    assert others.actor_options == spec.actor_options
    assert len({spec.digest, told.digest, others.digest}) == 3


def test_models_are_not_divided_by_nothing(repository: Path, tmp_path: Path) -> None:
    spec = ReplicaSpec(_options(repository / "large"))

    with pytest.raises(InvalidArgument, match="Pass its memory in bytes"):
        divided(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="has no models to divide"):
        divided(ReplicaSpec(_options(tmp_path / "empty"), {"memory": 1}))


@pytest.mark.parametrize(
    "options",
    [
        {"lifecycle": LifecycleOptions(mode="poll")},
        {"lifecycle": LifecycleOptions(mode="explicit", load_models=("small",))},
        {"lifecycle": LifecycleOptions(namespacing=True)},
        {"model_name": "other"},
    ],
)
def test_options_that_choose_or_name_models_are_refused_with_shards(
    repository: Path, options: dict[str, Any]
) -> None:
    spec = ReplicaSpec(replace(_options(repository), **options), {"memory": 200_000_000})

    with pytest.raises(InvalidArgument, match="leave out --model-control-mode"):
        divided(spec)


def test_labels_are_shared_by_shards(repository: Path) -> None:
    options = replica_options(replace(_options(repository), lifecycle=LifecycleOptions(labels="repository")))

    assert len(divided(ReplicaSpec(options, {"memory": 200_000_000}))) == 2


def _options(repository: Path) -> ServerOptions:
    return ServerOptions((str(repository),))
