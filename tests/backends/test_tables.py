"""XGBoost, LightGBM, CatBoost, scikit-learn and MLflow: what is served, trusted and refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import load
from backends.served_models import (
    build_catboost,
    build_lightgbm,
    build_mlflow,
    build_skops,
    build_xgboost,
    need,
    wines,
)
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec


class Payload:
    """Stands for a malicious file: unpickling it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize(
    ("filename", "content", "reason"),
    [
        ("model.json", b'{"name": "a list of labels"}', "is not a model that XGBoost's save_model wrote"),
        (
            "model.txt",
            b"Notes about this model.",
            "is not a model that LightGBM's save_model wrote: it does not begin with 'tree'",
        ),
        ("model.cbm", b"something else", "is not a CatBoost model: it does not begin with 'CBM1'"),
    ],
)
def test_another_file_of_that_name_is_refused(
    filename: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / filename).write_bytes(content)

    with pytest.raises(InvalidArgument, match=reason):
        load(tmp_path / filename)


def test_a_broken_booster_is_reported_without_the_library_stack(tmp_path: Path) -> None:
    need("xgboost", "sklearn")
    build_xgboost("whole.json")(tmp_path)
    whole = (tmp_path / "whole.json").read_text()
    assert '"multi:softprob"' in whole
    (tmp_path / "model.json").write_text(whole.replace('"multi:softprob"', '"multi:unknown"'))

    with pytest.raises(InvalidArgument, match=r"model.json' cannot be loaded by XGBoost") as told:
        load(tmp_path / "model.json")
    assert "Stack trace" not in told.value.message


@pytest.mark.parametrize("datatype", [DataType.FP32, DataType.FP64])
def test_the_configuration_chooses_the_precision_of_features(datatype: DataType, tmp_path: Path) -> None:
    need("lightgbm", "sklearn")
    build_lightgbm(tmp_path)
    inputs = (TensorSpec("input__0", datatype, (13,)),)

    model = load(tmp_path / "model.txt", max_batch_size=8, inputs=inputs)

    assert model.signature.inputs == (TensorSpec("input__0", datatype, (-1, 13)),)
    (answer,) = model.run({"input__0": wines()[0][:2].astype(datatype.dtype)}, ["output__0"])
    assert answer.shape == (2, 3)


def test_catboost_predicts_classes_if_configured(tmp_path: Path) -> None:
    need("catboost", "sklearn")
    build_catboost(tmp_path)
    model = load(tmp_path / "model.cbm", parameters={"prediction_type": "Class"})

    inputs = {
        "input__0": np.zeros((2, 12), np.float32),
        "categorical__0": np.array([[b"light"], [b"strong"]], object),
    }
    assert set(np.unique(model.run(inputs, ["output__0"])[0])) <= {0, 1, 2}
    assert [spec.name for spec in model.signature.inputs] == ["input__0", "categorical__0"]


def test_an_invalid_parameter_lists_the_valid_values(tmp_path: Path) -> None:
    need("catboost", "sklearn")
    build_catboost(tmp_path)

    with pytest.raises(
        InvalidArgument,
        match="parameter 'prediction_type' of model 'm' is 'Guess', expected one of RawFormulaVal, Prob",
    ):
        load(tmp_path / "model.cbm", parameters={"prediction_type": "Guess"})


@pytest.mark.parametrize("filename", ["model.pkl", "model.joblib"])
def test_a_pickle_is_not_executed_without_trust(filename: str, tmp_path: Path) -> None:
    need("sklearn")
    (tmp_path / filename).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))

    with pytest.raises(
        InvalidArgument, match=r"is a pickle, which can execute anything.*skops.io.dump.*--trust-pickle"
    ):
        load(tmp_path / filename)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("filename", ["model.pkl", "model.joblib"])
def test_a_trusted_pickle_is_served_with_a_warning_that_names_it(filename: str, tmp_path: Path) -> None:
    need("sklearn")
    import joblib
    from sklearn.ensemble import RandomForestRegressor

    estimator = RandomForestRegressor(5, n_jobs=4, random_state=0).fit(*wines())
    joblib.dump(estimator, tmp_path / filename)
    model = load(tmp_path / filename, trust_pickle=True)

    (answer,) = model.run({"input__0": wines()[0][:3]}, ["predict"])

    np.testing.assert_array_equal(answer, estimator.predict(wines()[0][:3]))
    assert model.signature.outputs == (TensorSpec("predict", DataType.FP64, (-1,)),)
    assert str(tmp_path / filename) in model.warnings[0]


def test_an_estimator_that_lacks_attributes_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    need("sklearn", "skops")
    from sklearn.preprocessing import StandardScaler
    from skops import io

    estimator = StandardScaler().fit(wines()[0])
    del estimator.with_mean, estimator.n_features_in_
    io.dump(estimator, tmp_path / "model.skops")

    with pytest.raises(InvalidArgument, match=r"model\.skops' cannot be loaded by scikit-learn: .*with_mean"):
        load(tmp_path / "model.skops")


def test_types_that_skops_does_not_trust_are_named_and_need_trust(tmp_path: Path) -> None:
    need("sklearn", "skops")
    from sklearn.ensemble import RandomForestClassifier
    from skops import io

    io.dump(RandomForestClassifier(3).fit(*wines()), tmp_path / "model.skops")

    with pytest.raises(
        InvalidArgument,
        match=r"types that skops does not trust: sklearn\.tree\._tree\.Tree; serve with"
        r" --trust-skops-type sklearn\.tree\._tree\.Tree if you know",
    ):
        load(tmp_path / "model.skops")
    with pytest.raises(InvalidArgument, match="types that skops does not trust"):
        load(tmp_path / "model.skops", trust_skops_types=frozenset({"sklearn.tree._tree.Other"}))
    forest = load(tmp_path / "model.skops", trust_skops_types=frozenset({"sklearn.tree._tree.Tree"}))
    (answer,) = forest.run({"input__0": wines()[0][:3]}, ["predict"])
    assert answer.shape == (3,)
    assert [spec.name for spec in load(tmp_path / "model.skops", trust_pickle=True).signature.outputs] == [
        "predict",
        "predict_proba",
    ]


def test_strings_go_to_a_vectoriser_and_classes_may_be_words(tmp_path: Path) -> None:
    need("sklearn", "skops")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline
    from skops import io

    pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(
        ["slow and sad", "fast and glad"], ["minor", "major"]
    )
    io.dump(pipeline, tmp_path / "model.skops")
    model = load(tmp_path / "model.skops")

    (answer,) = model.run({"input__0": np.array([b"so sad", b"glad"], object)}, ["predict"])

    assert model.signature.inputs == (TensorSpec("input__0", DataType.BYTES, (-1,)),)
    assert answer.tolist() == [b"minor", b"major"]


def test_an_estimator_that_only_transforms_is_served_by_transform(tmp_path: Path) -> None:
    need("sklearn", "skops")
    from sklearn.preprocessing import OneHotEncoder
    from skops import io

    encoder = OneHotEncoder().fit([[0.0], [1.0], [2.0]])
    io.dump(encoder, tmp_path / "model.skops")

    (answer,) = load(tmp_path / "model.skops").run({"input__0": np.array([[2.0], [0.0]])}, ["transform"])

    np.testing.assert_array_equal(answer, [[0, 0, 1], [1, 0, 0]])


def test_the_configuration_may_name_the_input_of_an_estimator(tmp_path: Path) -> None:
    need("sklearn", "skops")
    build_skops(tmp_path / "model.skops")
    inputs = (TensorSpec("wine", DataType.FP64, (13,)),)

    model = load(tmp_path / "model.skops", max_batch_size=8, inputs=inputs)

    assert model.signature.inputs == (TensorSpec("wine", DataType.FP64, (-1, 13)),)
    (answer,) = model.run({"wine": wines()[0][:2]}, ["predict"])
    assert answer.shape == (2,)


def test_values_that_an_estimator_refuses_are_the_clients_fault(tmp_path: Path) -> None:
    need("sklearn", "skops")
    build_skops(tmp_path / "model.skops")

    with pytest.raises(InvalidArgument, match="model 'm' refuses the input: Input X contains NaN"):
        load(tmp_path / "model.skops").run({"input__0": np.full((1, 13), np.nan)}, ["predict"])


def test_an_mlflow_folder_without_a_served_flavour_lists_the_served_ones(tmp_path: Path) -> None:
    need("yaml")
    (tmp_path / "MLmodel").write_text(
        "flavors:\n  prophet:\n    data: model.pr\n  spark:\n    model_data: sparkml\n"
    )

    with pytest.raises(InvalidArgument, match="it has 'prophet', 'spark', expected one of 'onnx'"):
        load(tmp_path)


def test_a_folder_of_mlflow_must_not_name_files_outside_of_it(tmp_path: Path) -> None:
    need("yaml")
    (tmp_path / "MLmodel").write_text("flavors:\n  onnx:\n    data: ../other/model.onnx\n")

    with pytest.raises(InvalidArgument, match="names a file outside of its folder"):
        load(tmp_path)


def test_a_pickle_of_mlflow_needs_trust_as_well(tmp_path: Path) -> None:
    need("yaml", "sklearn", "skops")
    build_mlflow(tmp_path)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    (tmp_path / "MLmodel").write_text(
        "flavors:\n  sklearn:\n    pickled_model: model.pkl\n    serialization_format: cloudpickle\n"
    )

    with pytest.raises(InvalidArgument, match="is a pickle, which can execute anything"):
        load(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_yaml_that_would_build_objects_is_refused(tmp_path: Path) -> None:
    need("yaml")
    (tmp_path / "MLmodel").write_text(
        f"flavors: !!python/object/apply:os.mkdir ['{tmp_path / 'executed'}']\n"
    )

    with pytest.raises(InvalidArgument, match="MLmodel' cannot be read"):
        load(tmp_path)
    assert not (tmp_path / "executed").exists()
