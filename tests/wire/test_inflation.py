"""Large compressed bodies are inflated one at a time."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import Coroutine
from typing import Any

import pytest

from backline.wire.application import Application, Buffer, Denial
from backline.wire.compression import RATIO_FROM, CodingError, Inflation
from backline.wire.connection import Wire
from backline.wire.limits import MIB, Limits
from support.open_gate import OpenGate

BODY = os.urandom(MIB) + bytes(9 * MIB)


def run(ask: Any, **limits: Any) -> Any:
    async def main() -> Any:
        application = Application(lambda request: None, {}, lambda status, message: (b"", b""), OpenGate())
        result = ask(Wire(application, Limits(**limits), asyncio.get_running_loop()).inflation)
        return await result if isinstance(result, Coroutine) else result

    return asyncio.run(main())


def inflate(coding: bytes, body: Buffer, **limits: Any) -> tuple[bytes | None, list[int]]:
    reserved: list[int] = []

    def reserve(size: int) -> bool:
        reserved.append(size)
        return True

    result = run(lambda inflation: inflation.inflate(coding, body, reserve, lambda: True), **limits)
    return (None if result is None else bytes(result)), reserved


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(BODY)),
        (b"deflate", zlib.compress(BODY)),
        (b"deflate", zlib.compress(BODY)[2:-4]),
    ],
)
def test_body_is_inflated_into_a_buffer_of_its_size(coding: bytes, body: bytes) -> None:
    result, reserved = inflate(coding, body)
    assert result == BODY
    assert reserved == [len(BODY)]


def test_a_request_that_is_refused_in_any_size_is_not_inflated_and_keeps_its_fields() -> None:
    denial = Denial(405, 12, "wrong method", [(b"allow", b"POST")])
    with pytest.raises(CodingError, match="wrong method") as refused:
        run(lambda inflation: inflation.inflate(b"gzip", b"", lambda size: True, lambda: True, denial))
    assert (refused.value.status, refused.value.fields) == (405, [(b"allow", b"POST")])


def test_gzip_of_several_members_is_measured() -> None:
    result, reserved = inflate(b"gzip", gzip.compress(BODY) + gzip.compress(b"the last"))
    assert result == BODY + b"the last"
    assert reserved[-1] == len(BODY) + len(b"the last")


def test_gzip_that_announces_too_large_a_size_is_inflated() -> None:
    body = gzip.compress(BODY)
    with pytest.raises(CodingError, match="not valid gzip"):
        inflate(b"gzip", body[:-4] + (len(BODY) + 1).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("coding", "packed"),
    [(b"gzip", gzip.compress(bytes(65 * MIB))), (b"deflate", zlib.compress(bytes(65 * MIB)))],
    ids=["gzip", "deflate"],
)
def test_body_above_the_limit_is_refused_before_anything_is_reserved(coding: bytes, packed: bytes) -> None:
    reserved: list[int] = []
    with pytest.raises(CodingError) as refused:
        run(
            lambda inflation: inflation.inflate(
                coding, packed, lambda size: not reserved.append(size), lambda: True
            )
        )
    assert refused.value.status == 413
    assert not reserved


def test_body_with_an_implausible_ratio_is_refused() -> None:
    with pytest.raises(CodingError, match="200 times"):
        inflate(b"gzip", gzip.compress(bytes(RATIO_FROM + 1)))


def test_body_without_room_is_refused() -> None:
    with pytest.raises(CodingError) as refused:
        run(
            lambda inflation: inflation.inflate(
                b"gzip", gzip.compress(BODY), lambda size: False, lambda: True
            )
        )
    assert refused.value.status == 503


def test_inflation_stops_once_the_body_is_unwanted() -> None:
    asked: list[int] = []

    def wanted() -> bool:
        asked.append(1)
        return len(asked) < 3

    assert (
        run(lambda inflation: inflation.inflate(b"deflate", zlib.compress(BODY), lambda size: True, wanted))
        is None
    )


def test_bodies_are_inflated_one_after_another() -> None:
    log: list[str] = []

    async def both(inflation: Inflation) -> None:
        async def one(name: str) -> None:
            def reserve(size: int) -> bool:
                log.append(f"{name} begins")
                return True

            await inflation.inflate(b"gzip", gzip.compress(BODY), reserve, lambda: True)
            log.append(f"{name} ends")

        await asyncio.gather(one("first"), one("second"))

    run(both)
    assert [entry.split()[1] for entry in log] == ["begins", "ends", "begins", "ends"]
