"""XGBoost models in JSON or UBJSON. Files are checked first: XGBoost does not validate numbers in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

_KNOWN = ("nthread",)


class XgBoost:
    """The backend for `model.json`, `xgboost.json` and `*.ubj`."""

    name: ClassVar[str] = "xgboost"

    def check_file(self, path: Path) -> None:
        _check_start(path)
        check_trees(path)

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> TableModel:
        """Loads a booster. The output `output__0` is the result of Booster.inplace_predict.

        For classifiers with the usual objectives (binary:logistic, multi:softprob), the output contains
        probabilities, of shape [N] or [N, classes]. A run uses one thread unless the parameter `nthread` is
        set.
        """
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("nthread", 1)
        _check_start(path)
        runtime = import_runtime("xgboost", what="XGBoost models need XGBoost", extra="xgboost")
        check_trees(path)
        with loading(path, f"XGBoost {runtime.__version__}", reason):
            booster: Any = runtime.Booster({"nthread": threads}, model_file=str(path))
            count = booster.num_features()

        def predict(rows: np.ndarray) -> np.ndarray:
            return np.asarray(booster.inplace_predict(rows, validate_features=False))

        return TableModel(
            path, config, (features(count, DataType.FP32, config),), predict, threads, parameters.warnings
        )


#: UBJSON's markers of number types (ubjson.org/type-reference), and their numpy types (big-endian).
_NUMBERS: Final = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_CONSTANTS: Final[dict[bytes, Any]] = {b"T": True, b"F": False, b"Z": None}
_DEEPEST: Final = 64
#: Optional fields with one value for each node. Not every version of XGBoost writes all these fields.
_OF_NODES: Final = (
    "parents",
    "default_left",
    "split_type",
    "sum_hessian",
    "loss_changes",
    "split_conditions",
)


def _check_start(path: Path) -> None:
    if b"learner" not in read_start(path):
        raise InvalidArgument(
            f"'{path}' is not a model that XGBoost's save_model wrote (JSON or UBJSON); if the model has"
            " another file name, set default_model_filename to it"
        )


def check_trees(path: Path) -> None:
    """Raises InvalidArgument for an incomplete file, or one with inconsistent numbers.

    With such a file, XGBoost would read out of bounds or loop forever.
    """
    with damaged(path):
        content = path.read_bytes()
        # Both formats begin with a brace. In UBJSON, the type marker of a length follows.
        model = _Ubjson(content).document() if content[1:2] in _NUMBERS else json.loads(content)
        learner = model["learner"]
        parameters = learner["learner_model_param"]
        features, classes = int(parameters["num_feature"]), int(parameters.get("num_class", 0))
        groups = max(classes, int(parameters.get("num_target", 1)), 1)
        if not (0 <= features <= 1 << 31 and classes >= 0 and groups <= MAX_CLASSES):
            raise Damaged(f"it has {features} features and {groups} outputs; one of these is out of range")
        booster = learner["gradient_booster"]
        if booster["name"] == "gblinear":
            if len(booster["model"]["weights"]) != (features + 1) * groups:
                raise Damaged("the number of weights does not match the number of features")
            return
        trees = booster.get("gbtree", booster)
        _check_trees(trees["model"], features, groups)
        if "weight_drop" in booster and len(booster["weight_drop"]) != len(trees["model"]["trees"]):
            raise Damaged("weight_drop does not have one value for each tree")


def _check_trees(model: Mapping[str, Any], features: int, groups: int) -> None:
    trees = model["trees"]
    info = _integers(model, "tree_info")
    if not int(model["gbtree_model_param"]["num_trees"]) == len(trees) == len(info):
        raise Damaged("num_trees, trees and tree_info do not agree on the number of trees")
    check_range("tree_info", info, 0, groups)
    if "iteration_indptr" in model:
        indptr = _integers(model, "iteration_indptr")
        if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(trees) or (np.diff(indptr) < 0).any():
            raise Damaged("iteration_indptr does not rise from 0 to the number of trees")
    for index, tree in enumerate(trees):
        try:
            _check_tree(tree, features)
        except Damaged as error:
            raise Damaged(f"tree {index}: {error}") from None


def _check_tree(tree: Mapping[str, Any], features: int) -> None:
    parameters = tree["tree_param"]
    nodes, width = int(parameters["num_nodes"]), int(parameters.get("size_leaf_vector", 1))
    if nodes < 1 or not 0 <= width <= MAX_CLASSES or int(parameters["num_feature"]) > features:
        raise Damaged("tree_param does not fit the model")
    left, right = _integers(tree, "left_children"), _integers(tree, "right_children")
    split = _integers(tree, "split_indices")
    for name in ("left_children", "right_children", "split_indices", *_OF_NODES):
        if name in tree and len(tree[name]) != nodes:
            raise Damaged(f"{name} has {len(tree[name])} values, not {nodes}")
    if len(tree["base_weights"]) not in (nodes, nodes * width):
        raise Damaged("base_weights does not have one value for each node")
    splits = left != -1
    leaves = right[~splits]
    if len(tree.get("leaf_weights", ())):  # several outputs: a leaf's right child is a vector's index
        check_range("a leaf's vector", leaves, -1, len(tree["leaf_weights"]) // max(width, 1))
    elif (leaves != -1).any():
        raise Damaged("a node has only one child")
    check_children(np.flatnonzero(splits), left[splits], right[splits], nodes)
    if len(tree.get("parents", ())):
        above = _integers(tree, "parents")
        check_range("parents", above[1:], 0, nodes)  # the root has no parent; XGBoost follows all other links
        own = np.flatnonzero(splits)
        if (above[left[splits]] != own).any() or (above[right[splits]] != own).any():
            raise Damaged("parents contradict the children")
    check_range("split_indices", split[splits], 0, max(features, 1))
    if "categories" in tree:
        starts, sizes = _integers(tree, "categories_segments"), _integers(tree, "categories_sizes")
        owners = _integers(tree, "categories_nodes")
        if not len(starts) == len(sizes) == len(owners):
            raise Damaged("categories_segments, _sizes and _nodes differ in length")
        check_range("categories_nodes", owners, 0, nodes)
        check_range("categories_segments", starts, 0, len(tree["categories"]) + 1)
        check_range("categories_sizes", sizes, 0, len(tree["categories"]) + 1)
        check_range("categories_segments", starts + sizes, 0, len(tree["categories"]) + 1)
        check_range("categories", _integers(tree, "categories"), 0, 1 << 24)
        types = tree.get("split_type", ())
        chosen = np.flatnonzero(np.array(types, np.int64) == 1)
        if not np.isin(chosen[splits[chosen]], owners).all():
            raise Damaged("a categorical split has no categories")


def _integers(values: Mapping[str, Any], key: str) -> np.ndarray:
    return np.asarray(values[key], np.int64)


class _Ubjson:
    """A parser of UBJSON. It returns typed arrays of numbers as numpy arrays, and raises Damaged if the input
    is malformed.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def document(self) -> Any:
        value = self._value(self._take(1), 0)
        if self._at != len(self._content):
            raise Damaged("it has trailing data")
        return value

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._content) - self._at:
            raise Damaged("it ends too early")
        self._at += size
        return self._content[self._at - size : self._at]

    def _peek(self) -> bytes:
        return self._content[self._at : self._at + 1]

    def _size(self) -> int:
        size = self._number(self._take(1))
        if not isinstance(size, int) or size < 0:
            raise Damaged("a length is not a number")
        return size

    def _number(self, kind: bytes) -> Any:
        dtype = np.dtype(_NUMBERS[kind]) if kind in _NUMBERS else None
        if dtype is None:
            raise Damaged(f"it has a value of unknown type {kind!r}")
        return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()

    def _value(self, kind: bytes, depth: int) -> Any:
        if depth > _DEEPEST:
            raise Damaged("it is nested too deeply")
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind == b"S":
            return self._take(self._size()).decode("utf-8", "replace")
        if kind == b"C":
            return self._take(1).decode("latin-1")
        if kind == b"{":
            return self._object(depth)
        return self._array(depth) if kind == b"[" else self._number(kind)

    def _array(self, depth: int) -> Any:
        if self._peek() == b"$":
            self._take(1)
            kind = self._take(1)
            if kind not in _NUMBERS or self._take(1) != b"#":
                raise Damaged("it has an array of unknown type")
            dtype = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self._take(self._size() * dtype.itemsize), dtype)
        if self._peek() == b"#":
            self._take(1)
            count = self._size()
            if count > len(self._content):
                raise Damaged("it ends too early")
            return [self._value(self._take(1), depth + 1) for _ in range(count)]
        values = []
        while (kind := self._take(1)) != b"]":
            values.append(self._value(kind, depth + 1))
        return values

    def _object(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while self._peek() != b"}":
            key = self._take(self._size()).decode("utf-8", "replace")
            if key in values:
                raise Damaged(f"{key} is given twice")
            values[key] = self._value(self._take(1), depth + 1)
        self._take(1)
        return values
