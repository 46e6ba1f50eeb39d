"""Packages that models of tests ask for, in versions that come as wheels for the Python that runs the tests."""

from __future__ import annotations

import sys

import numpy as np

_NUMPY = ("1.26.4", "2.1.3", "2.1.2") if sys.version_info < (3, 13) else ("2.3.2", "2.3.4", "2.3.3")
#: Versions of NumPy that the tests themselves do not have.
OLD_NUMPY, NEW_NUMPY = [version for version in _NUMPY if version != np.__version__][:2]
