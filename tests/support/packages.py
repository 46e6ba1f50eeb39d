"""Packages that test models require, in versions that have wheels for the running Python."""

from __future__ import annotations

import sys

import numpy as np

_NUMPY = ("1.26.4", "2.1.3", "2.1.2") if sys.version_info < (3, 13) else ("2.3.2", "2.3.4", "2.3.3")
#: NumPy versions other than the one that the tests run with.
OLD_NUMPY, NEW_NUMPY = [version for version in _NUMPY if version != np.__version__][:2]
