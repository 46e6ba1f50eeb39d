"""Checks files of tree ensembles, because their runtimes use numbers in them as indices without checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from backline.engine.errors import InvalidArgument

MAX_CLASSES: Final = 1 << 20


class Damaged(Exception):
    """Raised when a file has inconsistent contents; the message says what is inconsistent."""


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turns exceptions from the checks of a file into InvalidArgument, which says that it is damaged."""
    try:
        yield
    except KeyError as error:
        reason = f"{error.args[0]} is missing"
    except (Damaged, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror}") from None
    else:
        return
    raise InvalidArgument(f"'{path}' is damaged, or was not copied completely: {reason}")


def check_range(name: str, values: np.ndarray, low: int, high: int) -> None:
    """Raises Damaged for a value outside [low, high)."""
    if values.size and not (values.min() >= low and values.max() < high):
        raise Damaged(f"a value of {name} is not from {low} to {high - 1}")


def check_children(parents: np.ndarray, left: np.ndarray, right: np.ndarray, nodes: int) -> None:
    """Raises Damaged unless each child of `parents` is a node other than the root 0, with only one parent.

    Then the nodes that are reachable from the root form a tree, in which every walk ends.
    """
    if not len(left) == len(right) == len(parents):
        raise Damaged("a split does not have two children")
    children = np.concatenate([left, right])
    check_range("a split's children", children, 1, nodes)
    if len(np.unique(children)) != len(children):
        raise Damaged("a node is the child of two splits")
