"""The limit for all queues together."""

from __future__ import annotations

from backline.schedule.queues.queue import QueueTotal


def test_the_total_is_full_at_its_limit() -> None:
    total = QueueTotal(2)
    total.waiting = 1
    assert not total.full
    total.waiting = 2
    assert total.full


def test_a_total_without_a_limit_is_never_full() -> None:
    total = QueueTotal()
    total.waiting = 10**9
    assert not total.full


def test_the_refusal_names_limit_and_model_and_when_to_retry() -> None:
    refusal = QueueTotal(7).refusal("m")
    assert "maximum queue size of 7 requests for all models" in str(refusal)
    assert "'m'" in str(refusal)
    assert refusal.retry_after == 1
