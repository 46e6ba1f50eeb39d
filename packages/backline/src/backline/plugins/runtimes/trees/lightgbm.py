"""LightGBM models. Files are checked first, because LightGBM does not validate the numbers in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import import_runtime, loading, read_start
from backline.backends.tables import (
    MAX_CLASSES,
    Damaged,
    TableModel,
    check_children,
    check_range,
    damaged,
    features,
    reason,
)
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument

_KNOWN = ("num_threads",)


class LightGbm:
    """The backend for `model.txt` and `lightgbm.txt`."""

    name: ClassVar[str] = "lightgbm"

    def check_file(self, path: Path) -> None:
        _check_start(path)
        check_trees(path)

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> TableModel:
        """Loads a booster. The output `output__0` is the result of Booster.predict.

        For classifiers, the output contains probabilities, of shape [N] or [N, classes]. A run uses one
        thread unless the parameter `num_threads` is set.
        """
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("num_threads", 1)
        _check_start(path)
        runtime = import_runtime("lightgbm", what="LightGBM models need LightGBM", extra="lightgbm")
        check_trees(path)
        with loading(path, f"LightGBM {runtime.__version__}", reason):
            booster: Any = runtime.Booster(model_file=str(path))
            count = booster.num_feature()

        def predict(rows: np.ndarray) -> np.ndarray:
            return np.asarray(booster.predict(rows, num_threads=threads))

        return TableModel(
            path, config, (features(count, DataType.FP64, config),), predict, threads, parameters.warnings
        )


_END: Final = b"end of trees"
#: Required fields with one value per split, then optional fields with one value per split or per leaf.
_OF_SPLITS: Final = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
_MORE_OF_SPLITS: Final = ("split_gain", "internal_value", "internal_weight", "internal_count")
_MORE_OF_LEAVES: Final = ("leaf_weight", "leaf_count")
_CATEGORICAL: Final = 1
#: Fields of floating-point numbers. LightGBM terminates the process if such a field contains anything else.
_NUMBERS: Final = ("threshold", "leaf_value", "leaf_const", "leaf_coeff", "shrinkage")
#: The section of training parameters. LightGBM's parser does not check that the section ends.
_PARAMETERS: Final = re.compile(rb"(?:\[\w+: [^\n]*\]\n|\n)*end of parameters\n")


def _check_start(path: Path) -> None:
    if read_start(path).split(None, 1)[:1] != [b"tree"]:
        raise InvalidArgument(
            f"'{path}' is not a model that LightGBM's save_model wrote: it does not begin with 'tree'; if"
            " the model has another file name, set default_model_filename to it"
        )


def check_trees(path: Path) -> None:
    """Raises InvalidArgument for an incomplete file, or one with inconsistent numbers.

    With such a file, LightGBM would read out of bounds, loop forever, or abort the process.
    """
    with damaged(path):
        content = path.read_bytes()
        if b"\0" in content:  # LightGBM's parser would loop forever on a line with a null byte
            raise Damaged("it contains null bytes, so it is not a text file")
        end = content.find(b"\n" + _END)
        if end < 0:
            raise Damaged(f"it has no line '{_END.decode()}'")
        first = content.find(b"\nTree=")
        first = min(first, end) + 1 if first >= 0 else end + 1
        header = _lines(content[:first])
        features = int(header["max_feature_idx"]) + 1
        classes = int(header["num_class"])
        if not (0 < features <= 1 << 24 and 0 < classes <= MAX_CLASSES):
            raise Damaged(f"it has {features} features and {classes} classes; one of these is out of range")
        if int(header["num_tree_per_iteration"]) != classes:
            raise Damaged("num_tree_per_iteration differs from num_class")
        given = re.search(r"\bnum_class:(\d+)", header.get("objective", ""))
        if given and int(given[1]) != classes:
            raise Damaged("num_class differs from the num_class of its objective")
        for name in ("feature_names", "feature_infos"):
            if name in header and len(header[name].split()) != features:
                raise Damaged(f"{name} does not have {features} values")
        trees = _trees(content, header, first, end + 1)
        if len(trees) % classes:
            raise Damaged(f"its {len(trees)} trees cannot be divided evenly among {classes} classes")
        for index, tree in enumerate(trees):
            try:
                _check_tree(_lines(tree), features)
            except Damaged as error:
                raise Damaged(f"tree {index}: {error}") from None
        parameters = content.find(b"\nparameters:\n", end)
        if parameters >= 0 and not _PARAMETERS.match(content, content.index(b":", parameters) + 2):
            raise Damaged(
                "its parameters are not lines of the form '[name: value]' before 'end of parameters'"
            )


def _trees(content: bytes, header: Mapping[str, str], first: int, end: int) -> list[bytes]:
    """Splits the file into its trees, as LightGBM does: by `tree_sizes` if the header has this field."""
    if "tree_sizes" in header:
        sizes = _integers(header, "tree_sizes")
        check_range("tree_sizes", sizes, 0, len(content) + 1)
        starts = [first, *(first + np.cumsum(sizes)).tolist()]
    else:
        starts = [first + tree.start() for tree in re.finditer(rb"^Tree=", content[first:end], re.MULTILINE)]
        starts.append(end)
    trees = [content[start:stop] for start, stop in pairwise(starts)]
    if starts[-1] != end or any(not tree.startswith(b"Tree=") for tree in trees):
        raise Damaged("tree_sizes does not match the trees")
    return trees


def _check_tree(tree: Mapping[str, str], features: int) -> None:
    leaves, categories = int(tree["num_leaves"]), int(tree["num_cat"])
    if not 0 < leaves <= 1 << 24:
        raise Damaged(f"it has {leaves} leaves, which is out of range")
    _count(tree, "leaf_value", leaves)
    if int(tree.get("is_linear", "0")):
        counts = _integers(tree, "num_features")
        check_range("num_features", counts, 0, features + 1)
        _count(tree, "num_features", leaves)
        _count(tree, "leaf_const", leaves)
        _count(tree, "leaf_coeff", int(counts.sum()))
        _count(tree, "leaf_features", int(counts.sum()))
        check_range("leaf_features", _integers(tree, "leaf_features"), 0, features)
    for name in (*_NUMBERS, *_MORE_OF_SPLITS, *_MORE_OF_LEAVES):
        _check_numbers(tree, name)
    if leaves == 1:
        return
    for name in _OF_SPLITS:
        _count(tree, name, leaves - 1)
    for names, count in ((_MORE_OF_SPLITS, leaves - 1), (_MORE_OF_LEAVES, leaves)):
        for name in names:
            if tree.get(name):
                _count(tree, name, count)
    check_range("split_feature", _integers(tree, "split_feature"), 0, features)
    left, right = _integers(tree, "left_child"), _integers(tree, "right_child")
    # A negative child is the leaf with the index ~child. Leaves are renumbered to follow the splits.
    joined = [np.where(child < 0, leaves - 2 - child, child) for child in (left, right)]
    check_children(np.arange(leaves - 1), joined[0], joined[1], 2 * leaves - 1)
    by_category = (_integers(tree, "decision_type") & _CATEGORICAL) != 0
    if categories:
        bounds = _integers(tree, "cat_boundaries")
        _count(tree, "cat_boundaries", categories + 1)
        if bounds[0] != 0 or (np.diff(bounds) < 0).any():
            raise Damaged("cat_boundaries does not rise from 0")
        _count(tree, "cat_threshold", int(bounds[-1]))
        _integers(tree, "cat_threshold")
    if by_category.any():
        chosen = np.array(tree["threshold"].split(), np.float64)[by_category]
        if not ((chosen >= 0) & (chosen < categories)).all():
            raise Damaged("the threshold of a categorical split is not one of its categories")


def _lines(text: bytes) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        key, is_pair, value = line.partition("=")
        if is_pair and key in values:
            raise Damaged(f"{key} is given twice")
        values[key] = value
    return values


def _integers(values: Mapping[str, str], key: str) -> np.ndarray:
    return np.array(values[key].split(), np.int64)


def _check_numbers(values: Mapping[str, str], key: str) -> None:
    text = values.get(key, "")
    try:
        np.array(text.split(), np.float64)
    except ValueError:
        raise Damaged(f"a value of {key} is not a number") from None
    if "_" in text:  # Python allows underscores in numbers, but LightGBM does not
        raise Damaged(f"a value of {key} is not a number")


def _count(values: Mapping[str, str], key: str, count: int) -> None:
    found = len(values[key].split())
    if found != count:
        raise Damaged(f"{key} has {found} values, not {count}")
