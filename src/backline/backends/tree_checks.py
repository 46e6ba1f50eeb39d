"""What the checks of tree ensembles have in common: numbers that a runtime would follow without a look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from backline.engine.errors import InvalidArgument

MAX_CLASSES: Final = 1 << 20


class Damaged(Exception):
    """What is wrong with a file."""


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Says of all that is found that the file is damaged, with InvalidArgument."""
    try:
        yield
    except KeyError as error:
        reason = f"{error.args[0]} is missing"
    except (Damaged, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deep"
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror}") from None
    else:
        return
    raise InvalidArgument(f"'{path}' is damaged, or was not copied completely: {reason}")


def check_range(name: str, values: np.ndarray, low: int, high: int) -> None:
    """Raises Damaged where a value is outside of [low, high)."""
    if values.size and not (values.min() >= low and values.max() < high):
        raise Damaged(f"a value of {name} is not from {low} to {high - 1}")


def check_children(parents: np.ndarray, left: np.ndarray, right: np.ndarray, nodes: int) -> None:
    """Raises Damaged unless the children of `parents` are nodes of which none is the root 0, nor the child of two.

    Then what can be reached from the root is a tree: a walk ends.
    """
    if not len(left) == len(right) == len(parents):
        raise Damaged("its splits do not have two children each")
    children = np.concatenate([left, right])
    check_range("a split's children", children, 1, nodes)
    if len(np.unique(children)) != len(children):
        raise Damaged("a node is the child of two splits")
