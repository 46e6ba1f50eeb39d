"""A short run of clients that leave at any moment; tests/fuzz/orders.py runs more."""

from __future__ import annotations

import asyncio

import pytest

from fuzz.orders import run

ORDERS = 2000


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_completes_twice_whenever_clients_leave() -> None:
    report = asyncio.run(run(ORDERS, seed=7))
    assert not report.findings, "\n".join(report.findings)
    assert report.orders == ORDERS
    assert report.answers > ORDERS // 2
