"""The list of replicas on Ray, as clients read it. Real ones: tests/fleet/test_ray_deployment.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backline_client.client import ray_directory
from backline_client.client.address import Address
from backline_client.client.ray_directory import ReplicaDirectory, replica_urls
from backline_client.values.errors import InvalidArgument, Unavailable

BOTH = (("grpc://a:1", frozenset({"x", "y"})), ("grpc://b:1", frozenset({"y"})))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[ReplicaDirectory | Unavailable], list[str]]:
    """Sets the controller's answer. Returns the names of the deployments that were asked for."""
    asked: list[str] = []

    def answer(found: ReplicaDirectory | Unavailable) -> list[str]:
        monkeypatch.setattr(ray_directory, "_found", {})
        monkeypatch.setattr(ray_directory, "_ask", lambda name: asked.append(name) or found)
        return asked

    return answer


Answers = Callable[[ReplicaDirectory | Unavailable], list[str]]


def test_a_url_may_name_a_model_of_a_deployment() -> None:
    parsed = Address.parse("ray://backline/m%20x")

    assert (parsed.host, parsed.path, parsed.by_ray) == ("backline", "m x", True)
    for url in ("ray://a/b/c", "ray:///m", "ray://a:1/m"):
        with pytest.raises(InvalidArgument, match="expected ray://NAME or ray://NAME/MODEL"):
            Address.parse(url)


def test_only_replicas_with_the_model_are_named(answers: Answers) -> None:
    answers(ReplicaDirectory(BOTH, divided=True))

    assert replica_urls("d", "x") == ["grpc://a:1"]
    assert replica_urls("d", "y") == ["grpc://a:1", "grpc://b:1"]
    with pytest.raises(Unavailable, match="no replica with model 'z' of the deployment 'd'"):
        replica_urls("d", "z")
    with pytest.raises(
        InvalidArgument, match="connect to ray://d/MODEL for one model, or to the server in front"
    ):
        replica_urls("d")


def test_without_shards_any_replica_will_do(answers: Answers) -> None:
    answers(ReplicaDirectory(BOTH, divided=False))

    assert replica_urls("d") == ["grpc://a:1", "grpc://b:1"]


def test_many_models_share_an_answer(answers: Answers) -> None:
    asked = answers(ReplicaDirectory(BOTH, divided=True))

    for model in ("x", "y", "x"):
        replica_urls("d", model, max_age=60)
    replica_urls("e", "x", max_age=60)
    assert asked == ["d", "e"]

    replica_urls("d", "x")
    assert asked == ["d", "e", "d"]


def test_a_failure_is_an_answer_too(answers: Answers) -> None:
    """Otherwise each of many models would wait in turn for a controller that does not answer."""
    asked = answers(Unavailable("it is gone"))

    for _ in range(2):
        with pytest.raises(Unavailable, match="it is gone"):
            replica_urls("d", "x", max_age=60)
    assert asked == ["d"]


def test_replicas_on_the_same_node_are_named_by_their_sockets(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, gone = tmp_path / "a socket", tmp_path / "gone"
    here.touch()
    sockets = (("grpc://a:1", "here", str(here)), ("grpc://b:1", "there", str(here)))
    monkeypatch.setattr(ray_directory, "_node", lambda: "here")
    answers(ReplicaDirectory(BOTH, divided=False, sockets=sockets))

    assert replica_urls("d") == ["grpc://a:1", "grpc://b:1"]
    near, far = replica_urls("d", near=True)
    assert (Address.parse(near).unix, Address.parse(near).path) == (True, str(here))
    assert far == "grpc://b:1"

    answers(ReplicaDirectory(BOTH, divided=False, sockets=(("grpc://a:1", "here", str(gone)),)))
    assert replica_urls("d", near=True) == ["grpc://a:1", "grpc://b:1"]
