"""Type hints of optional inputs."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from backline.model import FP32, Audio, Image
from backline.model.hints import without_none


@pytest.mark.parametrize("hint", [FP32[3], FP32, str, dict[str, int], Image, Image["L"], Audio[16000]])
def test_a_hint_or_none_is_the_hint(hint: Any) -> None:
    assert without_none(hint) == hint
    assert without_none(hint | None) == hint
    assert without_none(None | hint) == hint


def test_optional_is_read_like_a_union_with_none() -> None:
    assert without_none(Optional[str]) is str  # noqa: UP045


def test_a_union_of_two_hints_is_not_resolved() -> None:
    with pytest.raises(TypeError):
        FP32[3] | FP32[4]
    assert without_none(int | str) == int | str
