"""Which replicas of a deployment are started and stopped, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from backline.lifecycle.options import LifecycleOptions
from backline.plugins.ray.plan import ReplicaMember, ShardTarget, Steps, next_steps, wanted_replicas
from backline.plugins.ray.spec import ReplicaSpec, ReplicaState, replica_options
from backline.server import ServerOptions
from backline.wire.tls import TlsFiles
from backline_client.values.errors import InvalidArgument


def state(desired: float = 1.0, *, models: str = "", ready: bool = True) -> ReplicaState:
    """The state of a replica with the models named by the letters of `models`."""
    found = tuple((name, "1") for name in models)
    return ReplicaState("grpc://a:1", ready, desired, desired, 1, "node", found)


def new(name: str, *, ready: bool = True, desired: float = 1.0) -> ReplicaMember:
    return ReplicaMember(name, "new", state(desired) if ready else None)


def old(name: str, *, ready: bool = True) -> ReplicaMember:
    return ReplicaMember(name, "old", state() if ready else None)


def steps(members: list[ReplicaMember], wanted: int) -> Steps:
    """The next steps of a deployment whose replicas all have all models."""
    return next_steps(members, [ShardTarget("new", wanted)])


def starts(count: int, *stop: str) -> Steps:
    return Steps(("new",) * count, stop)


def wanted(members: list[ReplicaMember], least: int, most: int) -> int:
    return wanted_replicas(members, "new", least, most)


def member(name: str, digest: str, models: str) -> ReplicaMember:
    return ReplicaMember(name, digest, state(models=models))


def target(models: str, replicas: int = 1) -> ShardTarget:
    """A shard whose specification is called as its models are."""
    return ShardTarget(models, replicas, frozenset(models))


def test_all_replicas_of_a_new_deployment_start_at_once() -> None:
    assert steps([], 3) == starts(3)


def test_those_that_start_already_are_not_started_again() -> None:
    assert steps([new("a", ready=False), new("b", ready=False)], 3) == starts(1)


def test_a_roll_replaces_one_replica_after_the_other() -> None:
    """At each step at least two of two replicas take requests."""
    assert steps([old("a"), old("b")], 2) == starts(1)
    assert steps([old("a"), old("b"), new("c", ready=False)], 2) == starts(0)
    assert steps([old("a"), old("b"), new("c")], 2) == starts(0, "a")
    assert steps([old("b"), new("c")], 2) == starts(1)
    assert steps([old("b"), new("c"), new("d")], 2) == starts(0, "b")
    assert steps([new("c"), new("d")], 2) == starts(0)


def test_old_replicas_that_do_not_answer_stay_until_the_new_ones_take_requests() -> None:
    """A controller that has just started has heard of none of them."""
    assert steps([old("a", ready=False), old("b", ready=False), new("c")], 2) == starts(0)


def test_of_too_many_replicas_those_that_take_no_requests_go_first() -> None:
    assert steps([new("a"), new("b", ready=False), new("c")], 2) == starts(0, "b")


@pytest.mark.parametrize(("desired", "expected"), [(1.0, 2), (1.4, 3), (2.0, 4), (0.5, 1)])
def test_the_load_sets_the_number(desired: float, expected: int) -> None:
    assert wanted([new("a", desired=desired), new("b", desired=desired)], 1, 8) == expected


def test_the_number_stays_within_its_bounds() -> None:
    busy = [new("a", desired=2.0), new("b", desired=2.0)]

    assert wanted(busy, 1, 3) == 3
    assert wanted([new("a", desired=0.5), new("b", desired=0.5)], 2, 3) == 2


def test_the_number_is_not_lowered_while_a_replica_does_not_answer() -> None:
    assert wanted([new("a", desired=0.5), new("b", desired=0.5), new("c", ready=False)], 1, 4) == 2


def test_a_changed_specification_is_another_one() -> None:
    models = ServerOptions(("models",))
    spec = ReplicaSpec(models, {"num_cpus": 1})

    assert spec.digest == ReplicaSpec(ServerOptions(("models",)), {"num_cpus": 1}).digest
    assert spec.digest != ReplicaSpec(ServerOptions(("others",)), {"num_cpus": 1}).digest
    assert spec.digest != ReplicaSpec(replace(models, auth=Path("keys.toml")), {"num_cpus": 1}).digest
    assert spec.digest != ReplicaSpec(models, {"num_cpus": 2}).digest
    assert spec.digest != ReplicaSpec(models, {"num_cpus": 1}, revision="2").digest
    assert spec.digest != ReplicaSpec(models, {"num_cpus": 1}, models=("a",)).digest


def test_replicas_get_the_options_about_models_and_callers_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    lifecycle = LifecycleOptions(
        mode="poll",
        trust_pickle=True,
        labels="repository",
        cache_folder=Path("cache"),
        state_folder=Path("state"),
    )
    given = ServerOptions(
        ("models", "s3://bucket/more"),
        lifecycle,
        config_name="gpu",
        exit_on_error=True,
        tls=TlsFiles(Path("a"), Path("b")),
        auth=Path("keys.toml"),
        http_restricted_apis=("health:a=b",),
    )

    assert replica_options(given) == ServerOptions(
        (f"{tmp_path}/models", "s3://bucket/more"),
        replace(
            lifecycle,
            labels=f"{tmp_path}/models/.backline",
            cache_folder=tmp_path / "cache",
            state_folder=None,
        ),
        config_name="gpu",
        auth=tmp_path / "keys.toml",
    )


def test_labels_can_move_in_replicas_that_do_not_watch_their_repositories() -> None:
    for place in ("redis://host:6379/0", "s3://bucket/labels"):
        options = replica_options(ServerOptions(("a=s3://b/models",), LifecycleOptions(labels=place)))

        assert options.lifecycle == LifecycleOptions(mode="explicit", load_models=("*",), labels=place)
    with pytest.raises(InvalidArgument, match="which is read-only"):
        replica_options(ServerOptions(("x=hf://owner/repo",), LifecycleOptions(labels="repository")))


def test_replicas_without_any_model_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="name the models to serve with --load-model"):
        replica_options(ServerOptions(("models",), LifecycleOptions(mode="explicit")))


def test_each_shard_gets_its_replicas() -> None:
    members = [member("x", "ab", "ab")]

    assert next_steps(members, [target("ab", 2), target("c")]) == Steps(("ab", "c"), ())
    assert next_steps([*members, member("y", "ab", "ab")], [target("ab"), target("c")]) == Steps(
        ("c",), ("x",)
    )


def test_a_roll_of_shards_keeps_a_replica_with_each_model() -> None:
    """The same shards with another revision, whose specifications are called n-a and n-b."""
    targets = [ShardTarget("n-a", 1, frozenset("a")), ShardTarget("n-b", 1, frozenset("b"))]
    before = [member("x", "a", "a"), member("y", "b", "b")]

    assert next_steps(before, targets) == Steps(("n-a",), ())
    assert next_steps([*before, member("z", "n-a", "a")], targets) == Steps((), ("x",))
    assert next_steps([before[1], member("z", "n-a", "a")], targets) == Steps(("n-b",), ())
    assert next_steps([before[1], member("z", "n-a", "a"), member("w", "n-b", "b")], targets) == Steps(
        (), ("y",)
    )


def test_shards_that_are_divided_differently_start_before_the_old_ones_stop() -> None:
    targets = [target("a"), target("bc")]
    before = [member("x", "ab", "ab"), member("y", "c", "c")]

    assert next_steps(before, targets) == Steps(("a",), ())
    with_a = [*before, member("z", "a", "a")]
    assert next_steps(with_a, targets) == Steps(("bc",), ())
    assert next_steps([*with_a, ReplicaMember("w", "bc")], targets) == Steps((), ())
    assert next_steps([*with_a, member("w", "bc", "bc")], targets) == Steps((), ("x", "y"))


def test_many_shards_become_one_replica_without_a_gap() -> None:
    """There is room for two replicas at most, and yet none of the three old ones can stop first."""
    before = [member("x", "a", "a"), member("y", "b", "b"), member("z", "c", "c")]

    assert next_steps(before, [target("abc")]) == Steps(("abc",), ())


def test_a_model_that_is_no_longer_there_holds_nothing_back() -> None:
    members = [member("x", "gone", "g"), member("y", "old", "a"), member("z", "a", "a")]

    assert next_steps(members, [target("a"), target("b")]).stop == ("x",)


def test_a_shard_with_much_load_gets_more_replicas_than_the_others() -> None:
    busy, idle = (
        ReplicaMember(name, name, state(load, models=name)) for name, load in (("a", 2.0), ("b", 0.5))
    )

    assert wanted_replicas([busy], "a", 1, 8) == 2
    assert wanted_replicas([idle], "b", 1, 8) == 1
