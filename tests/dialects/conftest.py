from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_models import Caller, make_caller


@pytest.fixture
def caller() -> Caller:
    return make_caller()
