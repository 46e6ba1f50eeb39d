"""Errors as clients see them."""

from __future__ import annotations

from backline_client.values.errors import LONGEST_MESSAGE, InvalidArgument


def test_a_message_that_quotes_megabytes_is_cut() -> None:
    error = InvalidArgument(f"unknown input '{'x' * 5_000_000}'")
    assert len(error.message) == len(str(error)) == LONGEST_MESSAGE + len("...")
    assert error.public_message.startswith("unknown input 'xxx")
    assert error.public_message.endswith("xxx...")
