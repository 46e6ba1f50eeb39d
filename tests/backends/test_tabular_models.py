"""Estimators that were fitted on DataFrames: served by column, in every form that a table comes in."""

from __future__ import annotations

import io
import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backline
from backends.loading import load
from backends.served_models import need
from backline.backends.columns import columns_of
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from support.server import ServerProcess, serve

need("pandas", "pyarrow", "sklearn", "skops")

import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
from skops import io as skops  # noqa: E402

CSV, ARROW = "text/csv", "application/vnd.apache.arrow.stream"
CITIES = ["Oslo", "Rome", "Bonn"]


@cache
def people() -> tuple[pd.DataFrame, list[str]]:
    """240 people of whom some ages and cities are unknown, and whether they renewed."""
    random = np.random.default_rng(7)
    age = random.integers(18, 80, 240).astype(float)
    city = np.array(CITIES, object)[random.integers(0, 3, 240)]
    member = random.random(240) < 0.5
    visits = random.integers(1, 4, 240)
    renewed = (age / 80 + 0.6 * (city == "Rome") + 0.4 * member + random.random(240) / 3) > 1
    age[::11], city[::7] = np.nan, None
    table = pd.DataFrame(
        {
            "age": age,
            "city": pd.Series(city, dtype=object),
            "member": member,
            "visits": visits,
            "note": ["-"] * 240,
        }
    )
    return table, ["yes" if one else "no" for one in renewed]


def pipeline() -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age"]),
            ("words", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["city"]),
            ("grades", OrdinalEncoder(), ["visits"]),
            ("flags", "passthrough", ["member"]),
        ]
    )
    table, renewed = people()
    known = table.assign(city=table.city.where(table.city.notna(), np.nan))
    return make_pipeline(columns, LogisticRegression()).fit(known, renewed)


def forest() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    table, renewed = people()
    return HistGradientBoostingClassifier(max_iter=10).fit(categories(table), renewed)


def categories(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="note").assign(city=table.city.astype(pd.CategoricalDtype(CITIES)))


def words(table: pd.DataFrame) -> pd.DataFrame:
    """CatBoost has no missing categories, so an empty string is one."""
    return table.drop(columns="note").assign(city=table.city.where(table.city.notna(), ""))


def xgboost() -> Any:
    from xgboost import XGBClassifier

    table, renewed = people()
    numbers = [int(one == "yes") for one in renewed]
    return XGBClassifier(n_estimators=10, enable_categorical=True).fit(categories(table), numbers)


def lightgbm() -> Any:
    from lightgbm import LGBMClassifier

    table, renewed = people()
    return LGBMClassifier(n_estimators=10, verbose=-1).fit(categories(table), renewed)


def catboost() -> Any:
    from catboost import CatBoostClassifier

    table, renewed = people()
    model = CatBoostClassifier(iterations=10, verbose=0, allow_writing_files=False, cat_features=["city"])
    return model.fit(words(table), renewed)


@dataclass(frozen=True)
class Tabular:
    """A model, and how its own library takes the table."""

    name: str
    needs: tuple[str, ...]
    fit: Callable[[], Any]
    own: Callable[[pd.DataFrame], pd.DataFrame]

    @cache  # noqa: B019  the models live as long as the tests
    def fitted(self) -> Any:
        return self.fit()


MODELS = (
    Tabular("pipeline", (), pipeline, lambda table: table.assign(city=table.city.fillna(np.nan))),
    Tabular("forest", (), forest, categories),
    Tabular("xgboost", ("xgboost",), xgboost, categories),
    Tabular("lightgbm", ("lightgbm",), lightgbm, categories),
    Tabular("catboost", ("catboost",), catboost, words),
)


def given() -> pd.DataFrame:
    """Rows with and without missing values."""
    return people()[0].head(23)


def sent() -> pd.DataFrame:
    """The columns of these rows that the models take."""
    return given().drop(columns="note")


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records"))  # type: ignore[no-any-return]


def stream(table: pd.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    found = pa.Table.from_pandas(table, preserve_index=False)
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found, max_chunksize=10)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


BODIES: dict[str, tuple[str, Callable[[pd.DataFrame], bytes]]] = {
    "rows": ("application/json", lambda table: json.dumps(plain_rows(table)).encode()),
    "columns": (
        "application/json",
        lambda table: json.dumps(
            {name: [row[name] for row in plain_rows(table)] for name in table.columns}
        ).encode(),
    ),
    "csv": (CSV, lambda table: table.to_csv(index=False).encode()),
    "arrow": (ARROW, stream),
    "arrow with categories": (ARROW, lambda table: stream(table.assign(city=table.city.astype("category")))),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("tables")
    trusted: set[str] = set()
    for model in MODELS:
        try:
            need(*model.needs)
        except pytest.skip.Exception:
            continue
        file = repository / model.name / "1" / "model.skops"
        file.parent.mkdir(parents=True)
        skops.dump(model.fitted(), file)
        trusted.update(skops.get_untrusted_types(file=file))
    options = [word for one in sorted(trusted) for word in ("--trust-skops-type", one)]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(repository, log, *options, ready=False) as server:
        server.wait_ready(240)
        yield server


def post(url: str, kind: str, body: bytes, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, body, {"content-type": kind, "accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()  # type: ignore[no-any-return]


def refusal(url: str, kind: str, body: bytes) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as told:
        post(url, kind, body)
    return told.value.code, json.loads(told.value.read())["error"]


def probabilities(model: Tabular) -> np.ndarray:
    return np.asarray(model.fitted().predict_proba(model.own(given())))


@pytest.fixture(params=MODELS, ids=lambda model: model.name)
def model(request: pytest.FixtureRequest) -> Tabular:
    chosen: Tabular = request.param
    need(*chosen.needs)
    return chosen


@pytest.mark.parametrize("form", BODIES)
def test_every_form_of_a_table_gives_the_answer_of_the_model_itself(
    model: Tabular, form: str, served: ServerProcess
) -> None:
    kind, write = BODIES[form]

    answer = json.loads(post(f"{served.url}/models/{model.name}", kind, write(sent())))

    found = answer if form == "rows" else None
    got = answer["predict_proba"] if found is None else [list(row["predict_proba"].values()) for row in found]
    np.testing.assert_allclose(got, probabilities(model), rtol=1e-5)


def test_each_column_is_an_input_of_the_open_inference_protocol(
    model: Tabular, served: ServerProcess
) -> None:
    url = f"{served.url}/v2/models/{model.name}"
    with urllib.request.urlopen(url) as answer:
        inputs = json.load(answer)["inputs"]
    assert [one["name"] for one in inputs] == ["age", "city", "member", "visits"]
    rows = plain_rows(sent())
    for one in inputs:
        one["shape"] = [len(rows)]
        values = [row[one["name"]] for row in rows]
        numbers = {True: 1, False: 0}
        one["data"] = ["" if v is None else v for v in values] if one["datatype"] == "BYTES" else values
        if one["name"] == "member" and one["datatype"] != "BOOL":
            one["data"] = [numbers[v] for v in values]
        del one["parameters"]

    got = json.loads(post(f"{url}/infer", "application/json", json.dumps({"inputs": inputs}).encode()))

    (found,) = [one["data"] for one in got["outputs"] if one["name"] == "predict_proba"]
    np.testing.assert_allclose(found, probabilities(model).reshape(-1), rtol=1e-5)


@pytest.mark.parametrize("transport", ["url", "grpc_url"])
def test_the_python_client_takes_the_columns_of_a_dataframe(
    model: Tabular, transport: str, served: ServerProcess
) -> None:
    with backline.connect(getattr(served, transport)) as client:
        found = client[model.name](**sent())

    np.testing.assert_allclose(found["predict_proba"], probabilities(model), rtol=1e-5)


@pytest.mark.parametrize("form", ["rows", "csv", "arrow"])
def test_the_classes_have_their_names_in_the_answer(form: str, served: ServerProcess) -> None:
    kind, write = BODIES[form]
    body = post(f"{served.url}/models/pipeline", kind, write(sent()), kind)

    if form == "rows":
        rows = [row["predict_proba"] for row in json.loads(body)]
        found = [(row["no"], row["yes"]) for row in rows]
    else:
        read = pd.read_csv if form == "csv" else lambda file: pa.ipc.open_stream(file).read_pandas()
        table = read(io.BytesIO(body))
        assert set(table.predict) <= {"no", "yes"}
        found = list(zip(table["predict_proba.no"], table["predict_proba.yes"], strict=True))
    np.testing.assert_allclose(found, probabilities(MODELS[0]), rtol=1e-9)


def test_the_metadata_tells_columns_values_and_classes(served: ServerProcess) -> None:
    with urllib.request.urlopen(f"{served.url}/v2/models/pipeline") as answer:
        metadata = json.load(answer)

    by_name = {one["name"]: one for one in (*metadata["inputs"], *metadata["outputs"])}
    assert by_name["city"]["parameters"] == {
        "column": True,
        "labels": json.dumps(sorted(CITIES)).replace(" ", ""),
    }
    assert by_name["visits"]["datatype"] == "INT64"
    assert json.loads(by_name["predict_proba"]["parameters"]["labels"]) == ["no", "yes"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"city": "Paris"}, "refuses the input: Found unknown categories ['Paris']"),
        ({"age": "old"}, "input 'age' has a string where FP64 needs a number"),
        ({"visits": 1.5}, "input 'visits' has a number with a fraction where INT64 needs a whole number"),
        ({"towns": 1}, "'towns' is not an input of model 'pipeline'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_the_reason(
    change: dict[str, Any], text: str, served: ServerProcess
) -> None:
    row = {"age": 31, "city": "Rome", "member": True, "visits": 2, **change}

    status, error = refusal(f"{served.url}/models/pipeline", "application/json", json.dumps([row]).encode())

    assert status == 400
    assert text in error


def test_the_server_itself_never_imports_pandas(served: ServerProcess) -> None:
    for kind, write in BODIES.values():
        post(f"{served.url}/models/pipeline", kind, write(sent()), kind)

    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "pyarrow" in maps
    assert "pandas" not in maps


def test_numbers_alone_need_no_dataframe(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    table = people()[0][["visits", "member"]].astype(float)
    skops.dump(LinearRegression().fit(table, range(240)), tmp_path / "model.skops")
    model = load(tmp_path / "model.skops")

    (answer,) = model.run({"visits": np.array([1.0]), "member": np.array([0.0])}, ["predict"])

    assert [spec.name for spec in model.signature.inputs] == ["visits", "member"]
    assert math.isfinite(answer[0])


def test_the_configuration_chooses_the_types_of_columns_or_the_matrix(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    table = people()[0][["visits", "member"]].astype(float)
    skops.dump(LinearRegression().fit(table, range(240)), tmp_path / "model.skops")
    columns = (TensorSpec("visits", DataType.INT64, ()), TensorSpec("member", DataType.BOOL, ()))

    typed = load(tmp_path / "model.skops", max_batch_size=8, inputs=columns)
    matrix = load(
        tmp_path / "model.skops", max_batch_size=8, inputs=(TensorSpec("input__0", DataType.FP64, (2,)),)
    )

    assert [spec.datatype for spec in typed.signature.inputs] == [DataType.INT64, DataType.BOOL]
    assert [str(spec) for spec in matrix.signature.inputs] == ["input__0 FP64[-1, 2]"]
    (one,) = typed.run({"visits": np.array([2]), "member": np.array([True])}, ["predict"])
    (other,) = matrix.run({"input__0": np.array([[2.0, 1.0]])}, ["predict"])
    np.testing.assert_allclose(one, other)


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    skops.dump(MODELS[0].fitted(), tmp_path / "model.skops")
    model = load(tmp_path / "model.skops", trust_pickle=True)
    two = {
        spec.name: np.resize(spec.listed_values() if spec.labels else [0.0], 2)
        for spec in model.signature.inputs
    }

    with pytest.raises(
        InvalidArgument, match="column 'city' of model 'm' has 1 values, but column 'age' has 2"
    ):
        model.run({**two, "city": two["city"][:1]}, ["predict"])


def test_a_model_of_this_program_is_served_by_column_without_a_worker() -> None:
    with backline.serve(pipeline(), "renewals") as server:
        assert server.model is not None
        found = server.model(**sent())
        entry = next(one for one in server.client.models() if one.name == "renewals")

    np.testing.assert_allclose(found["predict_proba"], probabilities(MODELS[0]), rtol=1e-9)
    assert entry.ready


def test_columns_are_found_inside_searches_and_unions() -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import GridSearchCV

    table, renewed = people()
    known = table.assign(city=table.city.where(table.city.notna(), np.nan))
    search = GridSearchCV(pipeline(), {"logisticregression__C": [0.1, 1.0]}, cv=2).fit(known, renewed)
    calibrated = CalibratedClassifierCV(pipeline(), cv=2).fit(known, renewed)

    for estimator in (search, calibrated):
        found = columns_of(estimator)
        assert found is not None
        assert [(one.name, one.datatype.name) for one in found.specs] == [
            ("age", "FP64"),
            ("city", "BYTES"),
            ("member", "FP64"),
            ("visits", "INT64"),
        ]
