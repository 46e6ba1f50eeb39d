"""Which devices instances run on: examples, and properties for any configuration."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Gpus, Places, name_devices
from backline.lifecycle.loading.instances import asks_for_devices, place, place_again
from backline_client.values.errors import InvalidArgument

NONE = Gpus(reason="the runtime supports only the CPU")
TWO = Gpus((0, 1))
ON_0, ON_1, MODEL = Device("gpu", 0), Device("gpu", 1), Device("model")


def config(*groups: InstanceGroup, **fields: object) -> ModelConfig:
    return ModelConfig("m", instance_groups=groups, **fields)  # type: ignore[arg-type]


def group(count: int = 1, kind: str = "gpu", gpus: tuple[int, ...] = (), **more: object) -> InstanceGroup:
    return InstanceGroup(count, kind=kind, gpus=gpus, **more)  # type: ignore[arg-type]


def instances(places: Places, count: int | None = None) -> list[tuple[str, str]]:
    return [(str(one.device), one.name) for one in places.spread(count)]


@pytest.mark.parametrize(
    ("groups", "gpus", "expected"),
    [
        ((), NONE, [("CPU", "m_0")]),
        ((), TWO, [("GPU 0", "m_0"), ("GPU 1", "m_0")]),
        ((group(2, "auto"),), NONE, [("CPU", "m_0_0"), ("CPU", "m_0_1")]),
        ((group(1, "auto"),), TWO, [("GPU 0", "m_0_0"), ("GPU 1", "m_0_0")]),
        ((group(1, "auto", (1,)),), TWO, [("GPU 1", "m_0_0")]),
        ((group(2, "cpu"),), TWO, [("CPU", "m_0_0"), ("CPU", "m_0_1")]),
        ((group(2),), TWO, [("GPU 0", "m_0_0"), ("GPU 1", "m_0_0"), ("GPU 0", "m_0_1"), ("GPU 1", "m_0_1")]),
        ((group(2, gpus=(1,)),), TWO, [("GPU 1", "m_0_0"), ("GPU 1", "m_0_1")]),
        ((group(1, "model"),), TWO, [("its own", "m_0_0")]),
        ((group(1, gpus=(0,), name="fast"), group(1, "cpu")), TWO, [("GPU 0", "fast_0"), ("CPU", "m_1_0")]),
        ((group(1, "cpu", passive=True), group(1, "cpu")), NONE, [("CPU", "m_1_0")]),
        ((group(3, gpus=(0, 1)),), NONE, [("CPU", "m_0_0"), ("CPU", "m_0_1"), ("CPU", "m_0_2")]),
    ],
)
def test_instances_are_where_triton_would_make_them(
    groups: tuple[InstanceGroup, ...], gpus: Gpus, expected: list[tuple[str, str]]
) -> None:
    assert instances(place(config(*groups), gpus)) == expected


def test_an_unusable_gpu_is_reported_and_the_cpu_used() -> None:
    places = place(config(group()), NONE)

    assert (
        places.missing
        == "instance group m_0 of model m asks for a GPU, but the runtime supports only the CPU"
    )
    assert name_devices(places) == "CPU, no GPU"


@pytest.mark.parametrize("one", [group(), group(gpus=(0,)), group(1, "auto", (0,))])
def test_a_strict_server_refuses_in_the_words_of_triton(one: InstanceGroup) -> None:
    with pytest.raises(
        InvalidArgument,
        match="instance group m_0 of model m has kind KIND_GPU but no GPUs are available:"
        " the runtime supports only the CPU",
    ):
        place(config(one), NONE, strict=True)


def test_a_missing_gpu_does_not_fall_back_to_the_cpu_while_there_are_other_gpus() -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"specifies invalid or unsupported gpu id 7\. GPUs that this model can run on are: 0, 1",
    ):
        place(config(group(gpus=(0, 7))), TWO)


def test_groups_that_are_all_passive_run_nothing() -> None:
    with pytest.raises(InvalidArgument, match="all instance groups of model 'm' are passive"):
        place(config(group(passive=True)), TWO)


def test_lane_inline_cannot_use_a_gpu() -> None:
    assert place(config(lane="inline"), TWO).devices == (CPU,)
    assert not asks_for_devices(config(lane="inline"))
    with pytest.raises(InvalidArgument, match="lane inline and KIND_GPU contradict each other"):
        place(config(group(), lane="inline"), TWO)


def test_gpus_that_must_be_requested_are_not_used_by_default() -> None:
    shy = replace(TWO, by_default=False)

    assert place(config(), shy).devices == (CPU,)
    assert place(config(group(1, "auto")), shy).devices == (CPU,)
    assert place(config(group()), shy).devices == (ON_0, ON_1)


def test_without_groups_instances_take_turns_on_the_devices() -> None:
    places = place(config(), TWO)

    assert not places.counted
    assert instances(places, 3) == [("GPU 0", "m_0"), ("GPU 1", "m_0"), ("GPU 0", "m_1")]


def test_a_new_number_of_instances_keeps_the_devices() -> None:
    before = place(config(group(1, gpus=(1,)), group(1, "cpu")), TWO)

    after = place_again(config(group(2, "cpu"), group(2, gpus=(1,))), before)

    assert instances(after) == [("CPU", "m_0_0"), ("CPU", "m_0_1"), ("GPU 1", "m_1_0"), ("GPU 1", "m_1_1")]


kinds = st.sampled_from(["auto", "cpu", "gpu", "model"])
lists_of_gpus = st.lists(st.integers(0, 3), max_size=3, unique=True).map(tuple)


@st.composite
def instance_groups(draw: st.DrawFn) -> InstanceGroup:
    kind = draw(kinds)
    gpus = draw(lists_of_gpus) if kind in ("auto", "gpu") else ()
    return group(draw(st.integers(1, 4)), kind, gpus, passive=draw(st.booleans()))


@given(groups=st.lists(instance_groups(), min_size=1, max_size=4), there=lists_of_gpus, strict=st.booleans())
def test_every_request_for_devices_is_honoured_refused_or_reported(
    groups: list[InstanceGroup], there: tuple[int, ...], strict: bool
) -> None:
    gpus = Gpus(there, "" if there else "there is none")
    asked = config(*groups)
    try:
        places = place(asked, gpus, strict=strict)
    except InvalidArgument:
        active = [one for one in groups if not one.passive]
        unknown = any(set(one.gpus) - set(there) for one in active)
        assert not active or unknown or (strict and not there and any(one.kind == "gpu" for one in active))
        return
    assert [placed.index for placed in places.groups] == [
        index for index, one in enumerate(groups) if not one.passive
    ]
    counted = Counter(one.group for one in places.spread())
    for placed in places.groups:
        one = placed.group
        assert {device.kind for device in placed.devices} <= {
            "auto": {"cpu", "gpu"},
            "gpu": {"cpu", "gpu"},
        }.get(one.kind, {one.kind})
        assert all(device.index in there for device in placed.devices if device.kind == "gpu")
        if there and (one.kind == "gpu" or one.gpus):
            assert [device.index for device in placed.devices] == list(one.gpus or there)
        if one.kind == "gpu" and placed.devices == (CPU,):
            assert places.missing
            assert not strict
    assert counted == sum(
        (Counter({p.group: p.group.count * len(p.devices)}) for p in places.groups), Counter()
    )
    assert bool(places.missing) == any(
        (p.group.kind == "gpu" or p.group.gpus) and p.devices == (CPU,) for p in places.groups
    )


@given(
    groups=st.lists(instance_groups(), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 4), min_size=4, max_size=4),
)
def test_placing_again_is_the_same_as_placing(groups: list[InstanceGroup], counts: list[int]) -> None:
    assume(any(not one.passive for one in groups))
    gpus = Gpus((0, 1, 2, 3))
    changed = [replace(one, count=count) for one, count in zip(groups, counts, strict=False)]

    assert place_again(config(*changed), place(config(*groups), gpus)) == place(config(*changed), gpus)
