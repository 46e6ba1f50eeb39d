"""Which refusals are entered into the audit log, tested with plain values."""

from __future__ import annotations

from backline.dialects.audit import _MAX_ADDRESSES, _OTHERS, IN_TOTAL, PER_ADDRESS, RefusalLimit
from backline.engine.control import Attempt


def refusal(address: str) -> Attempt:
    return Attempt(0.0, "refused", "GET /v2", address=address)


def test_of_one_address_10_a_second_are_entered_and_the_others_counted() -> None:
    limit = RefusalLimit(0.0)
    assert sum(limit.admits(refusal("a"), 0.0) for _ in range(50)) == PER_ADDRESS
    assert limit.admits(refusal("b"), 0.0)
    (summary,) = limit.summary()
    assert (summary.address, summary.suppressed) == ("a", 50 - PER_ADDRESS)
    assert limit.summary() == []
    assert sum(limit.admits(refusal("a"), 1.0) for _ in range(50)) == PER_ADDRESS


def test_many_addresses_share_a_limit() -> None:
    limit = RefusalLimit(0.0)
    assert sum(limit.admits(refusal(str(number)), 0.0) for number in range(500)) == IN_TOTAL
    assert sum(one.suppressed for one in limit.summary()) == 400


def test_any_number_of_addresses_takes_bounded_memory() -> None:
    limit = RefusalLimit(0.0)
    for number in range(3 * _MAX_ADDRESSES):
        limit.admits(refusal(str(number)), 0.0)
    assert len(limit._buckets) <= _MAX_ADDRESSES + 1
    assert len(limit.suppressed) <= _MAX_ADDRESSES + 1
    assert limit.suppressed[_OTHERS][0] > _MAX_ADDRESSES
    assert sum(one.suppressed for one in limit.summary()) == 3 * _MAX_ADDRESSES - IN_TOTAL
    for number in range(3 * _MAX_ADDRESSES):
        limit.admits(refusal(str(-number)), 1000.0)
    assert len(limit._buckets) <= _MAX_ADDRESSES + 1
