"""The routes of the dialect, on a real server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

import backline


def double(x: float) -> float:
    return 2 * x


def test_the_inputs_of_a_model_are_shown() -> None:
    with backline.serve(double) as server:
        with urllib.request.urlopen(f"{server.url}/NAME/double", timeout=10) as answer:
            assert "x FP64" in json.load(answer)["inputs"][0]
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(f"{server.url}/NAME/unknown", timeout=10)
        assert told.value.code == 404
