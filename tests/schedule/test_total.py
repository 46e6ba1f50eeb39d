"""The limit for what waits in all queues together."""

from __future__ import annotations

from backline.schedule.queues.queue import QueueTotal


def test_it_is_full_when_as_many_wait_as_the_limit_says() -> None:
    total = QueueTotal(2)
    total.waiting = 1
    assert not total.full
    total.waiting = 2
    assert total.full


def test_without_a_limit_it_is_never_full() -> None:
    total = QueueTotal()
    total.waiting = 10**9
    assert not total.full


def test_the_refusal_names_the_limit_and_the_model_and_says_when_to_come_again() -> None:
    refusal = QueueTotal(7).refusal("m")
    assert "maximum queue size of 7 requests for all models" in str(refusal)
    assert "'m'" in str(refusal)
    assert refusal.retry_after == 1
