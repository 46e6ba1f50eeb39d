"""MLflow folders with a signature of named columns: estimators, and the flavour python_function."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import load
from backends.served_models import need
from backline.backends.registry import choose
from backline.engine.config.model_config import ModelConfig
from backline_client.values.errors import InvalidArgument
from support.server import serve

need("pandas", "sklearn", "skops", "yaml")

import pandas as pd  # noqa: E402


def write_estimator(folder: Path) -> Any:
    """As mlflow.sklearn.save_model writes it, with a signature."""
    from sklearn.linear_model import LinearRegression
    from skops import io

    table = pd.DataFrame({"visits": [1, 2, 3, 4], "member": [True, False, True, True]})
    estimator = LinearRegression().fit(table, [1.0, 2.0, 2.5, 4.0])
    io.dump(estimator, folder / "model.skops")
    columns = [{"type": "long", "name": "visits"}, {"type": "boolean", "name": "member"}]
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n"
        "  sklearn:\n    pickled_model: model.skops\n    serialization_format: skops\n"
        f"signature:\n  inputs: '{json.dumps(columns)}'\n"
    )
    return estimator


def test_an_estimator_takes_the_types_of_the_signature(tmp_path: Path) -> None:
    estimator = write_estimator(tmp_path)

    model = load(tmp_path)
    (answer,) = model.run({"visits": np.array([2, 3]), "member": np.array([True, False])}, ["predict"])

    assert [str(spec) for spec in model.signature.inputs] == ["visits INT64[-1]", "member BOOL[-1]"]
    rows = pd.DataFrame({"visits": [2, 3], "member": [True, False]})
    np.testing.assert_allclose(answer, estimator.predict(rows))


FUNCTION = (
    "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: model.pkl\n"
)


def test_only_a_folder_without_another_flavour_is_served_as_a_function(tmp_path: Path) -> None:
    write_estimator(tmp_path)
    assert choose(ModelConfig("m"), tmp_path).name == "mlflow"

    (tmp_path / "MLmodel").write_text(FUNCTION)
    entry = choose(ModelConfig("m"), tmp_path)

    assert (entry.name, entry.hosted) == ("mlflow_pyfunc", True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "can execute anything when it is loaded: serve with --trust-pickle-model m"),
        ({"trust_pickle": True, "may_run_code": False}, "--trust-remote-code"),
    ],
)
def test_a_function_is_loaded_only_if_it_is_trusted(
    options: dict[str, bool], text: str, tmp_path: Path
) -> None:
    (tmp_path / "MLmodel").write_text(FUNCTION)

    with pytest.raises(InvalidArgument, match=text):
        load(tmp_path, **options)


def test_a_function_gets_the_columns_as_a_dataframe_in_a_worker(tmp_path: Path) -> None:
    need("mlflow", "cloudpickle")
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    class Doubled(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            score = model_input["age"].fillna(0) * 2
            place = model_input["city"].fillna("nowhere").str.upper()
            return type(model_input)({"score": score, "place": place})

    inputs = Schema([ColSpec("double", "age"), ColSpec("string", "city")])
    outputs = Schema([ColSpec("double", "score"), ColSpec("string", "place")])
    folder = tmp_path / "models" / "doubled" / "1"
    mlflow.pyfunc.save_model(
        folder, python_model=Doubled(), signature=ModelSignature(inputs, outputs), pip_requirements=[]
    )
    (folder / "requirements.txt").unlink()  # MLflow is installed beside the server already
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)

    with serve(tmp_path / "models", tmp_path / "log", "--trust-pickle", ready=False) as server:
        server.wait_ready(120)
        rows = [{"age": 20, "city": "Oslo"}, {"age": None, "city": None}]
        body = json.dumps(rows).encode()
        with urllib.request.urlopen(f"{server.url}/models/doubled", body, timeout=60) as answer:
            found = json.load(answer)
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()

    assert found == [{"score": 40.0, "place": "OSLO"}, {"score": 0.0, "place": "NOWHERE"}]
    assert "pandas" not in maps
