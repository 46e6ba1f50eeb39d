"""scikit-learn estimators: from skops files, and from pickles if the server trusts them."""

from __future__ import annotations

import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.columns import Columns, columns_of
from backline.backends.parameters import Parameters
from backline.backends.runtime import decode, encode, import_runtime, loading, one_line, read_start
from backline.backends.tables import reason
from backline.engine.config.model_config import ModelConfig
from backline.system.archive_limits import UnpackLimits, check_zip
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

INPUT = "input__0"
#: The methods that are served, each as an output of that name. If an estimator has neither, `transform` is
#: served.
_METHODS = ("predict", "predict_proba")
_PICKLES = (".pkl", ".pickle", ".joblib")
#: What occurs in the file of an estimator that was fitted on a DataFrame, or that needs a library which
#: imports pandas.
_MARKS = (b"feature_names_in_", b"pandas", b"lightgbm", b"catboost", b"xgboost")
#: The size of the pieces in which a file is searched for them.
_PIECE = 1 << 20


class Sklearn:
    """The backend for `*.skops`, and for `*.pkl`, `*.pickle` and `*.joblib` if pickles are trusted."""

    name: ClassVar[str] = "sklearn"

    def check_file(self, path: Path) -> None:
        read_start(path)
        if path.suffix not in _PICKLES and not zipfile.is_zipfile(path):
            raise InvalidArgument(
                f"'{path}' is not a skops file: it is not a zip archive, or it is truncated; write it with"
                " skops.io.dump"
            )

    def needs_worker(self, path: Path, config: ModelConfig) -> bool:
        """Returns whether the file may need pandas. See WorkerBackend.

        Looks for names in the file, without loading it. A compressed pickle may need anything.
        """
        try:
            with path.open("rb") as file:
                if path.suffix not in _PICKLES:
                    with zipfile.ZipFile(file) as archive, archive.open("schema.json") as schema:
                        return _has_marks(schema)
                compressed = file.read(1) != b"\x80"  # the first byte of every pickle since protocol 2
                return compressed or _has_marks(file)
        except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, zlib.error):
            return False  # the load says what is wrong with the file

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> SklearnModel:
        """Loads an estimator.

        If it was fitted on a DataFrame, each column is an input, whose type follows from the fitted
        estimator. Otherwise, the input has a row of features for each item, or strings if the estimator
        begins with a vectoriser; its name is `input__0`, unless the configuration gives another one. Outputs
        are named after the methods: `predict` and `predict_proba`, or `transform`. A run uses one core.
        Unless `trust_pickle` is set, raises InvalidArgument for a pickle, and for a skops file with types
        that are trusted neither by skops nor by `trust_skops_types`.
        """
        parameters = Parameters(config, self.name, ())
        read_start(path)
        what = "scikit-learn models need scikit-learn"
        import_runtime("sklearn", what=what, extra="sklearn")
        warnings = parameters.warnings
        if path.suffix in _PICKLES:
            estimator = _unpickle(path, config.name, what, trusted=options.trust_pickle)
            executed = (
                "which can execute anything when it is loaded; it was loaded because pickles are trusted"
            )
            warnings += (f"'{path}' is a pickle, {executed}",)
        else:
            estimator = _load_skops(path, what, options)
        with loading(path, "scikit-learn"):  # a damaged file may hold an estimator that lacks attributes
            _use_one_core(estimator)
            columns = columns_of(estimator, config.inputs)
            if columns is None or not columns.framed:
                _forget_names(estimator)
            inputs = (_input(path, estimator, config),) if columns is None else columns.specs
            methods = [method for method in _METHODS if hasattr(estimator, method)]
            if not methods and hasattr(estimator, "transform"):
                methods = ["transform"]
        if not methods:
            raise InvalidArgument(
                f"'{path}' cannot be served: a {type(estimator).__name__} has neither predict nor transform;"
                " save an estimator that has one of them"
            )
        return SklearnModel(path, config, estimator, inputs, columns, methods, warnings)


class SklearnModel:
    """A loaded estimator. Runs hold the GIL for part of the time, so parallel runs on threads gain little."""

    threads_per_run = 1

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        estimator: Any,
        inputs: Sequence[TensorSpec],
        columns: Columns | None,
        methods: Sequence[str],
        warnings: tuple[str, ...],
    ) -> None:
        """`columns` is None for an estimator that has only one input."""
        self._name = config.name
        self._columns = columns
        self._input = inputs[0]
        self._methods = {name: _method(estimator, name) for name in methods}
        self.warnings = warnings
        rows = {spec.name: _trial_values(spec) for spec in inputs}
        classes = getattr(estimator, "classes_", ())
        outputs = []
        for method in methods:  # trial runs with two rows, because an estimator does not describe its outputs
            try:
                (answer,) = self.run(rows, [method])
            except BacklineError as error:
                raise InvalidArgument(
                    f"'{path}' cannot be served: a trial run of {method} on two generated rows failed:"
                    f" {error.message}{_types_advice(columns)}"
                ) from None
            shape = (-1, *answer.shape[1:])
            named = method == "predict_proba" and shape[1:] == (len(classes),)
            labels = tuple(map(str, classes)) if named else ()
            outputs.append(TensorSpec(method, DataType.from_dtype(answer.dtype), shape, labels=labels))
        self.signature = agree(path, Signature(tuple(inputs), tuple(outputs)), config)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if not self._methods:
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
        limit_threads()
        rows = self._rows(inputs)
        try:
            return [_array(self._methods[method](rows)) for method in outputs]
        except ValueError as error:  # scikit-learn raises it for unusable values, such as NaN
            raise InvalidArgument(f"model '{self._name}' refuses the input: {reason(error)}") from None
        except Exception as error:
            raise Internal(f"model '{self._name}' failed: {type(error).__name__}: {reason(error)}") from None

    def _rows(self, inputs: Mapping[str, np.ndarray]) -> Any:
        """Returns the argument of the estimator's methods."""
        if self._columns is not None:
            return self._columns.rows(self._name, inputs)
        array = inputs[self._input.name]
        if self._input.datatype is DataType.BYTES:
            return decode(self._name, self._input.name, array).tolist()
        return array

    def close(self) -> None:
        self._methods = {}


_limited = threading.local()


def limit_threads() -> None:
    """Limits numerical libraries to one core for runs on this thread, since OpenMP's limit is per thread."""
    if not getattr(_limited, "done", False):
        from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

        threadpool_limits(1)
        _limited.done = True


def _use_one_core(estimator: Any) -> None:
    if hasattr(estimator, "get_params"):
        parallel = [key for key in estimator.get_params() if key.rpartition("__")[2] == "n_jobs"]
        if parallel:
            estimator.set_params(**dict.fromkeys(parallel, 1))


def _method(estimator: Any, name: str) -> Callable[[Any], Any]:
    method: Callable[..., Any] = getattr(estimator, name)
    # The parameters of a fitted model of CatBoost cannot be changed, so each call limits the threads.
    return partial(method, thread_count=1) if hasattr(estimator, "get_cat_feature_indices") else method


def _forget_names(estimator: Any) -> None:
    """Removes the column names of the training data from an estimator and its parts.

    Requests are arrays without names. An estimator that knows column names would warn in every run.
    """
    waiting, seen = [estimator], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple):
            waiting.extend(one)
        elif hasattr(one, "get_params") and id(one) not in seen:
            seen.add(id(one))
            vars(one).pop("feature_names_in_", None)
            waiting.extend(vars(one).values())


def _load_skops(path: Path, what: str, options: LoadOptions) -> Any:
    check_zip(path, UnpackLimits())
    skops = import_runtime("skops.io", what=what, extra="sklearn")
    with loading(path, "skops"):
        untrusted = skops.get_untrusted_types(file=path)
        refused = [] if options.trust_pickle else [t for t in untrusted if t not in options.trust_skops_types]
        if refused:
            settings = " ".join(f"--trust-skops-type {one}" for one in refused)
            raise InvalidArgument(
                f"'{path}' holds types that skops does not trust: {', '.join(refused)}; serve with"
                f" {settings} if you know where the file comes from"
            )
        return skops.load(path, trusted=untrusted)


def _unpickle(path: Path, model: str, what: str, *, trusted: bool) -> Any:
    if not trusted:
        raise InvalidArgument(
            f"'{path}' is a pickle, which can execute anything when it is loaded; save the estimator with"
            " skops.io.dump(estimator, 'model.skops'), or serve with --trust-pickle-model"
            f" {model} if you know where the file comes from"
        )
    joblib = import_runtime("joblib", what=what, extra="sklearn")
    try:
        return joblib.load(path)  # reads plain pickles as well
    except Exception as error:
        raise InvalidArgument(
            f"'{path}' cannot be unpickled: {type(error).__name__}: {one_line(error)}"
        ) from None


def _trial_values(spec: TensorSpec) -> np.ndarray:
    """Returns two values or rows of an input that the estimator probably accepts."""
    if spec.labels:
        return np.resize(spec.listed_values(), 2)
    if spec.datatype is DataType.BYTES:
        return np.array([b"a text", b"more"], object)
    return np.zeros((2, *spec.shape[1:]), spec.datatype.dtype)


def _types_advice(columns: Columns | None) -> str:
    if columns is None:
        return ""
    found = ", ".join(f"{column.name} {column.datatype.name}" for column in columns.columns[:20])
    return (
        f"; the types of the columns follow from the fitted estimator: {found}; if a type is wrong, write the"
        " inputs into the model's configuration"
    )


def _has_marks(file: IO[bytes]) -> bool:
    kept = b""
    while piece := file.read(_PIECE):
        text = kept + piece
        if any(mark in text for mark in _MARKS):
            return True
        kept = text[-max(map(len, _MARKS)) :]
    return False


def _input(path: Path, estimator: Any, config: ModelConfig) -> TensorSpec:
    """Returns the model's only input: strings, or rows of features in the configured precision.

    If the estimator does not say how many features it takes, the configuration must describe the input;
    otherwise raises InvalidArgument.
    """
    given = config.inputs[0] if len(config.inputs) == 1 else None
    # CatBoost's models forget the number when they are pickled, but not the names.
    count = (
        getattr(estimator, "n_features_in_", None) or len(getattr(estimator, "feature_names_", ())) or None
    )
    first = estimator.steps[0][1] if hasattr(estimator, "steps") else estimator
    name = given.name if given else INPUT
    if hasattr(first, "build_analyzer"):
        return TensorSpec(name, DataType.BYTES, (-1,))
    if count is not None:
        datatype = given.datatype if given and given.datatype is DataType.FP32 else DataType.FP64
        return TensorSpec(name, datatype, (-1, int(count)))
    if given is not None:
        return TensorSpec(
            given.name, given.datatype, (-1, *given.shape) if config.max_batch_size else given.shape
        )
    raise InvalidArgument(
        f"'{path}' does not say how many features it takes (a {type(estimator).__name__}); write its input"
        " into a config.pbtxt:"
        f' input [ {{ name: "{INPUT}" data_type: TYPE_FP64 dims: [ -1, FEATURES ] }} ]'
    )


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "toarray"):  # a sparse matrix of scipy
        value = value.toarray()
    array = np.asarray(value)
    return encode(array) if array.dtype.kind in "OU" else array
