"""Which version serves a request, as models are added, change and are forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Serving
from backline_client.values.errors import InvalidArgument, NotFound, Unavailable
from backline_client.values.messages import InferRequest


def add(engine: Engine, name: str, version: str = "1") -> Model:
    model = Model(name, version, ModelConfig(name))
    model.state = ModelState.READY
    engine.add(model)
    return model


def test_a_refresh_of_one_model_keeps_the_routes_of_the_others() -> None:
    engine = Engine()
    first, second = add(engine, "first"), add(engine, "second")
    engine.refresh()

    second.state = ModelState.UNAVAILABLE
    engine.refresh(["second"])

    assert engine.find_ready("first") is first
    with pytest.raises(Unavailable):
        engine.find_ready("second")


def test_a_refresh_follows_versions_and_labels_of_the_named_model() -> None:
    engine = Engine()
    add(engine, "one", "1")
    newer = add(engine, "one", "2")
    engine.refresh(["one"])
    assert engine.find("one") is newer

    older = engine.find("one", "1")
    engine.set_labels("one", {"stable": "1"})
    engine.refresh(["one"])
    assert engine.find("one") is older

    engine.remove(newer)
    engine.refresh(["one"])
    with pytest.raises(NotFound):
        engine.find("one", "2")


class NoSequences:
    open_sequences = 0

    def holds(self, request: InferRequest) -> bool:
        return False


@pytest.mark.parametrize("names", [None, ["one"]], ids=["all", "named"])
def test_a_forgotten_model_has_no_routes(names: list[str] | None) -> None:
    engine = Engine()
    model = add(engine, "one")
    engine.refresh()

    engine.remove(model)
    engine.forget("one")
    engine.refresh(names)

    with pytest.raises(NotFound):
        engine.find("one")
    assert not engine._routes


def test_models_are_sorted_by_name_and_then_by_version() -> None:
    engine = Engine()
    for name, version in (("b", "10"), ("b", "9"), ("a", "1")):
        add(engine, name, version)

    assert [(model.name, model.version) for model in engine.models()] == [("a", "1"), ("b", "9"), ("b", "10")]


def test_a_version_that_serves_only_its_open_sequences_is_listed_once() -> None:
    engine = Engine()
    model = add(engine, "one")
    model.serving = Serving(model.serving.check, model.serving.queue, NoSequences())
    model.state = ModelState.UNLOADING
    engine.refresh()
    assert engine.versions("one") == [model]

    newer = add(engine, "one")
    engine.refresh()
    assert engine.versions("one") == [newer, model]


def test_a_version_that_serves_requests_is_found_by_one_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    model = add(engine, "one")
    engine.refresh()

    monkeypatch.delattr(Engine, "find")

    assert engine.find_ready("one") is engine.find_ready("one", "1") is model


def test_the_characters_of_a_name_that_is_too_long_are_not_looked_at() -> None:
    """A gRPC message may name a model of megabytes, and each character takes 80 ns."""

    class Unread(str):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the characters were looked at")

    engine = Engine()
    add(engine, "m")
    engine.refresh()
    long = Unread("x" * 10_000)
    for model, version in ((long, ""), ("m", long)):
        with pytest.raises(InvalidArgument, match="is longer than 255 bytes"):
            engine.find_ready(model, version)
