"""The columns of the DataFrame that an estimator was fitted on, and the DataFrame that a request becomes.

An estimator records the names of its columns, but not their types. The types follow from its fitted parts:
the categories of encoders, the replacements of imputers, and the categories in XGBoost's, LightGBM's and
CatBoost's models. A column of which nothing is known holds numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from backline.backends.runtime import decode, import_runtime
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec

#: The maximum number of known values of a column that the signature lists. A column may have any number.
MOST_LISTED: Final = 100
#: The maximum number of columns that are inputs of their own.
MOST_COLUMNS: Final = 4096
_MISSING: Final = float("nan")
_NO_NAMES: Final[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a DataFrame.

    `values` are the values that the column is known to have had, without the missing one, and `missing` is
    the value in the DataFrame that stands for a missing string. A `categorical` column gets the dtype
    `category` with these values.
    """

    name: str
    datatype: DataType = DataType.FP64
    values: tuple[Any, ...] = ()
    missing: Any = _MISSING
    categorical: bool = False

    @property
    def spec(self) -> TensorSpec:
        """The column as an input of a model."""
        listed = tuple(map(str, self.values[:MOST_LISTED]))
        return TensorSpec(self.name, self.datatype, (-1,), labels=listed, column=True)


@dataclass(slots=True)
class Columns:
    """The columns of an estimator. Unless `framed`, the estimator takes rows of numbers as well, so that no
    DataFrame is needed.
    """

    columns: tuple[Column, ...]
    framed: bool = True
    _dtypes: dict[str, Any] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(column.spec for column in self.columns)

    def rows(self, model: str, inputs: Mapping[str, np.ndarray]) -> Any:
        """Returns the inputs as a DataFrame, or as rows of numbers if the estimator takes these.

        Raises InvalidArgument for columns of different lengths and for strings that are not UTF-8.
        """
        lengths = {column.name: len(inputs[column.name]) for column in self.columns}
        first = self.columns[0].name
        for name, length in lengths.items():
            if length != lengths[first]:
                raise InvalidArgument(
                    f"column '{name}' of model '{model}' has {length} values, but column '{first}' has"
                    f" {lengths[first]}: send one value of each column for each row"
                )
        if not self.framed:
            return np.column_stack([inputs[column.name] for column in self.columns])
        pandas = import_runtime("pandas", what=f"model '{model}' was fitted on a DataFrame", extra="pandas")
        return pandas.DataFrame(
            {column.name: self._series(pandas, model, column, inputs[column.name]) for column in self.columns}
        )

    def _series(self, pandas: Any, model: str, column: Column, array: np.ndarray) -> Any:
        if column.datatype is DataType.BYTES:
            texts = decode(model, column.name, array)
            if column.missing != "" and "" not in column.values:
                texts[texts == ""] = column.missing
            array = texts
        if not column.categorical:
            return pandas.Series(array, dtype=array.dtype)
        dtype = self._dtypes.get(column.name)
        if dtype is None:
            dtype = self._dtypes[column.name] = pandas.CategoricalDtype(list(column.values))
        return pandas.Series(pandas.Categorical(array, dtype=dtype))


def columns_of(estimator: Any, given: Sequence[TensorSpec] = ()) -> Columns | None:
    """Returns the columns of an estimator, or None if it was not fitted on a DataFrame or has too many
    columns.

    `given` are inputs of the configuration: if they have the names of columns, they choose the datatypes. If
    they have other names, the model takes them and no columns, so the result is None.
    """
    names = names_of(estimator)
    if not names or len(names) > MOST_COLUMNS or len(set(names)) != len(names):
        return None
    chosen = {spec.name: spec.datatype for spec in given}
    if not chosen.keys() <= set(names):
        return None
    finder = _Finder()
    finder.look(estimator, names)
    columns = []
    for name in names:
        if name in finder.dropped - finder.used and name not in chosen:
            continue
        column = finder.columns.get(name) or Column(name)
        columns.append(replace(column, datatype=chosen.get(name, column.datatype)))
    numbers = all(column.datatype is DataType.FP64 and not column.categorical for column in columns)
    return Columns(tuple(columns), framed=finder.needs_names or not numbers)


def names_of(estimator: Any) -> tuple[str, ...]:
    """Returns the names of the columns that an estimator was fitted on; empty if it was fitted on arrays."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        names = getattr(estimator, "feature_names_", None)  # CatBoost's
    if names is None and hasattr(estimator, "steps"):
        return names_of(estimator.steps[0][1])
    if names is None or not all(isinstance(name, str) for name in names):
        return _NO_NAMES
    found = tuple(map(str, names))
    # LightGBM and CatBoost name the columns of an array themselves.
    generated = [tuple(f"{start}{index}" for index in range(len(found))) for start in ("Column_", "")]
    return _NO_NAMES if found in generated else found


class _Finder:
    """Walks through the fitted parts of an estimator and collects what they know of its columns.

    What is found first is kept, because later parts may get encoded values under the same name.
    """

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}
        #: The columns that a ColumnTransformer drops, and those that any part uses.
        self.dropped: set[str] = set()
        self.used: set[str] = set()
        #: Whether a part selects columns by name, or may do so.
        self.needs_names = False
        self._seen: set[int] = set()

    def look(self, part: Any, names: Sequence[str] | None) -> None:
        """Looks at a part that gets columns of these names, or of unknown names."""
        if isinstance(part, str) or part is None:
            self.used.update(names or ())
            return
        if id(part) in self._seen:
            return
        self._seen.add(id(part))
        if names is not None and len(names) != getattr(part, "n_features_in_", len(names)):
            names = None
        names = names_of(part) or names
        if hasattr(part, "transformers_"):
            self._look_at_transformers(part, names)
        elif hasattr(part, "steps"):
            for _, step in part.steps:
                self.look(step, names)
                names = _names_after(step, names)
        elif hasattr(part, "transformer_list"):
            for _, transformer in part.transformer_list:
                self.look(transformer, names)
        else:
            self._look_at_leaf(part, names)

    def _look_at_transformers(self, part: Any, names: Sequence[str] | None) -> None:
        self.needs_names = True
        if names is None:
            return
        for _, transformer, selected in part.transformers_:
            chosen = [names[index] for index in _indexes(selected, names)]
            if isinstance(transformer, str) and transformer == "drop":
                self.dropped.update(chosen)
            else:
                self.look(transformer, chosen)

    def _look_at_leaf(self, part: Any, names: Sequence[str] | None) -> None:
        module = type(part).__module__.partition(".")[0]
        if module != "sklearn" or type(part).__name__ == "FunctionTransformer":
            self.needs_names = True
        children = list(_children(part))
        if names is not None:
            self.used.update(() if children else names)
            for column in _known(part, names):
                self._keep(column)
        for child in children:
            self.look(child, names)

    def _keep(self, column: Column) -> None:
        """Keeps what is new about a column: an encoder adds values to the type that an imputer tells."""
        known = self.columns.get(column.name)
        if known is None:
            self.columns[column.name] = column
        elif known.datatype is column.datatype and not known.values:
            missing = column.missing if known.missing is not None else None
            self.columns[column.name] = replace(column, missing=missing)


def _children(part: Any) -> Iterator[Any]:
    """Yields the fitted estimators inside a part, such as those of an ensemble or of a search."""
    for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
        # A parameter such as `estimator` is not fitted; its fitted clone has another name.
        fitted = name.endswith("_") or name.startswith("_")
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, np.ndarray | type) or one is None:
                break
            if hasattr(one, "get_params") and (fitted or hasattr(one, "n_features_in_")):
                yield one
            elif hasattr(one, "estimator") and hasattr(one, "calibrators"):  # of CalibratedClassifierCV
                yield one.estimator


def _indexes(selected: Any, names: Sequence[str]) -> list[int]:
    """Returns the positions of columns that a ColumnTransformer selects, in any of the forms it accepts."""
    if isinstance(selected, slice):
        start = names.index(selected.start) if isinstance(selected.start, str) else selected.start
        stop = selected.stop
        if isinstance(stop, str):  # as in pandas, the last name is included
            stop = names.index(stop) + 1
        return list(range(len(names))[start : stop : selected.step])
    if isinstance(selected, str | int | np.integer):
        selected = [selected]
    chosen = list(selected)
    if chosen and all(isinstance(one, bool | np.bool_) for one in chosen):
        return [index for index, one in enumerate(chosen) if one]
    return [names.index(one) if isinstance(one, str) else int(one) for one in chosen]


def _names_after(step: Any, names: Sequence[str] | None) -> Sequence[str] | None:
    """Returns the names of a step's outputs if they are its inputs, one for one."""
    if isinstance(step, str) or step is None:
        return names
    if names is None or not hasattr(step, "get_feature_names_out"):
        return None
    with suppress(Exception):
        out = list(step.get_feature_names_out(None if names_of(step) else list(names)))
        return names if out == list(names) else None
    return None


def _known(part: Any, names: Sequence[str]) -> Iterator[Column]:
    """Yields the columns of which a fitted part knows more than the name."""
    if hasattr(part, "build_analyzer"):
        yield from (Column(name, DataType.BYTES, missing="") for name in names)
    elif hasattr(part, "categories_") and len(part.categories_) == len(names):
        for name, categories in zip(names, part.categories_, strict=True):
            yield _of_values(name, list(categories))
    elif hasattr(part, "statistics_") and len(part.statistics_) == len(names):
        missing = None if getattr(part, "missing_values", _MISSING) is None else _MISSING
        for name, value in zip(names, part.statistics_, strict=True):
            if isinstance(value, str):
                yield Column(name, DataType.BYTES, missing=missing)
    elif hasattr(part, "booster_") and hasattr(part.booster_, "pandas_categorical"):
        yield from _of_lightgbm(part.booster_, names)
    elif hasattr(part, "get_booster"):
        yield from _of_xgboost(part.get_booster(), names)
    elif hasattr(part, "get_cat_feature_indices"):
        strings = [*part.get_cat_feature_indices(), *part.get_text_feature_indices()]
        yield from (Column(names[index], DataType.BYTES, missing="") for index in strings)


def _of_values(name: str, categories: Iterable[Any], *, categorical: bool = False) -> Column:
    """Returns the column that has had these values, with the datatype that holds all of them."""
    plain = [one.item() if isinstance(one, np.generic) else one for one in categories]
    values = tuple(one for one in plain if one is not None and not _is_nan(one))
    missing = None if None in plain else _MISSING
    datatypes = {str: DataType.BYTES, bool: DataType.BOOL, int: DataType.INT64}
    kinds = set(map(type, values))
    datatype = datatypes.get(kinds.pop(), DataType.FP64) if len(kinds) == 1 else DataType.FP64
    if len(values) < len(plain) and datatype is DataType.INT64:
        datatype = DataType.FP64  # which can be missing
    return Column(name, datatype, values, missing, categorical)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _of_lightgbm(booster: Any, names: Sequence[str]) -> Iterator[Column]:
    categories = booster.pandas_categorical or []
    indexes = sorted(booster.params.get("categorical_column") or ())
    if len(indexes) == len(categories):
        for index, values in zip(indexes, categories, strict=True):
            yield _of_values(names[index], values, categorical=True)


def _of_xgboost(booster: Any, names: Sequence[str]) -> Iterator[Column]:
    types = booster.feature_types or []
    indexes = [index for index, kind in enumerate(types) if kind == "c"]
    if not indexes:
        return
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    saved = learner["gradient_booster"]
    saved = saved.get("model") or saved.get("gbtree", {}).get("model", {})
    encoders = saved.get("cats", {}).get("enc") or [{}] * len(types)
    for index in indexes:
        values = encoders[index].get("values") or ()
        if not values:
            raise InvalidArgument(
                f"the model does not list the categories of column '{names[index]}': fit and save it with"
                " XGBoost 3.1 or later"
            )
        offsets = encoders[index].get("offsets")
        if offsets:
            text = bytes(one & 0xFF for one in values)
            values = [text[start:end].decode() for start, end in pairwise(offsets)]
        yield _of_values(names[index], values, categorical=True)
