"""Truncated or crafted tree ensembles are refused. A child process loads them, as they might crash it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import load
from backends.served_models import need
from backline.plugins.runtimes.trees import lightgbm as lightgbm_backend
from backline.plugins.runtimes.trees import xgboost as xgboost_backend
from backline_client.values.errors import InvalidArgument
from support.lazy import lazy
from support.server import serve

need("lightgbm", "xgboost")

lightgbm, xgboost = lazy("lightgbm"), lazy("xgboost")

CHILD = """
import sys
from pathlib import Path
from backends.loading import load
from backline_client.values.errors import BacklineError
for path in sys.argv[1:]:
    try:
        load(Path(path))
        print("loaded", flush=True)
    except BacklineError as error:
        print(error.message, flush=True)
"""
RNG = np.random.default_rng(1)
X = RNG.random((300, 4))
X[:, 3] = RNG.integers(0, 5, 300)
Y = (X[:, 0] * 3).astype(int)


def outcomes(*paths: Path) -> list[str]:
    """The outcome of loading each file in a child process."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return child.stdout.splitlines()


def lightgbm_text(**parameters: Any) -> str:
    given = {"objective": "multiclass", "num_class": 3, "num_leaves": 5, "verbose": -1, **parameters}
    return str(lightgbm.train(given, lightgbm.Dataset(X, Y, categorical_feature=[3]), 2).model_to_string())


def resized(text: str) -> str:
    """Updates tree_sizes after an edit, as an attacker would."""
    end = text.index("end of trees")
    starts = [found.start() for found in re.finditer(r"^Tree=", text, re.MULTILINE)]
    sizes = [stop - start for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    return re.sub(r"tree_sizes=.*", f"tree_sizes={' '.join(map(str, sizes))}", text)


def test_a_truncated_lightgbm_model_is_refused(tmp_path: Path) -> None:
    text = lightgbm_text()
    end = text.index("end of trees")
    paths = []
    for size in (10, 100, 700, end // 2, end - 1, end + 5):
        (tmp_path / str(size)).mkdir()
        paths.append(tmp_path / str(size) / "model.txt")
        paths[-1].write_text(text[:size])

    answers = outcomes(*paths)

    assert len(answers) == len(paths)
    assert all("is damaged, or was not copied completely" in answer for answer in answers), answers


@pytest.mark.parametrize(
    ("pattern", "new", "reason"),
    [
        (r"split_feature=\d+", "split_feature=99", "split_feature"),
        (r"split_feature=\d+", "split_feature=-1", "split_feature"),
        (r"left_child=\S+", "left_child=0", "children"),
        (r"left_child=\S+", "left_child=1000000", "children"),
        (r"left_child=\S+", "left_child=-1000000", "children"),
        (r"right_child=(\S+) (\S+)", r"right_child=\1 \1", "a node is the child of two splits"),
        (r"num_leaves=\d+", "num_leaves=1000000", "leaf_value has"),
        (r"num_leaves=\d+", "num_leaves=0", "it has 0 leaves"),
        (r"leaf_value=\S+ ", "leaf_value=", "leaf_value has"),
        (r"num_cat=0", "num_cat=7", "cat_boundaries is missing"),
        (r"decision_type=\d+", "decision_type=1", "not one of its categories"),
        (r"\nnum_class=3", "\nnum_class=1000000000", "classes"),
        (r"num_class:3", "num_class:1000000", "num_class of its objective"),
        (r"max_feature_idx=3", "max_feature_idx=1000000000", "features"),
        (r"max_feature_idx=3", "max_feature_idx=2", "feature_names does not have 3 values"),
        (r"tree_sizes=\d+", "tree_sizes=1", "tree_sizes does not match the trees"),
        (r"tree_sizes=\d+", "tree_sizes=-5", "tree_sizes"),
        (r"internal_weight=", "internal_wei\0ht=", "contains null bytes"),
    ],
)
def test_a_lightgbm_model_with_wrong_numbers_is_refused(
    tmp_path: Path, pattern: str, new: str, reason: str
) -> None:
    text, count = re.subn(pattern, new, lightgbm_text(), count=1)
    assert count == 1
    (tmp_path / "model.txt").write_text(text if "tree_sizes" in pattern else resized(text))

    with pytest.raises(InvalidArgument, match=f"is damaged, or was not copied completely: .*{reason}"):
        lightgbm_backend.check_trees(tmp_path / "model.txt")


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"objective": "regression", "num_class": 1, "linear_tree": True},
        {"objective": "binary", "num_class": 1, "num_leaves": 31},
        {"objective": "multiclassova"},
        {"boosting": "dart"},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "lambdarank", "num_class": 1},
        {"min_data_in_leaf": 300},
        {"cat_smooth": 0, "min_data_per_group": 1, "max_cat_to_onehot": 1, "cat_l2": 0},
    ],
)
def test_a_model_written_by_lightgbm_passes(tmp_path: Path, parameters: dict[str, Any]) -> None:
    given = {"objective": "multiclass", "num_class": 3, "num_leaves": 5, "verbose": -1, **parameters}
    binary = given["objective"] in ("binary", "lambdarank")
    data = lightgbm.Dataset(
        X,
        Y > 1 if binary else Y,
        group=[150, 150] if given["objective"] == "lambdarank" else None,
        categorical_feature="auto" if "linear_tree" in parameters else [3],
    )
    lightgbm.train(given, data, 3).save_model(tmp_path / "model.txt")

    lightgbm_backend.check_trees(tmp_path / "model.txt")


def booster(**parameters: Any) -> xgboost.Booster:
    given = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, **parameters}
    given = {key: value for key, value in given.items() if value is not None}
    categorical = "multi_strategy" not in parameters  # which XGBoost cannot do together
    kinds = ["q", "q", "q", "c"] if categorical else None
    data = xgboost.DMatrix(X, Y, feature_types=kinds, enable_categorical=categorical)
    return xgboost.train(given, data, 2)


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_a_truncated_xgboost_model_is_refused(tmp_path: Path, form: str) -> None:
    content = bytes(booster().save_raw(form))
    paths = []
    for size in (60, 100, 700, len(content) // 2, len(content) - 1):
        (tmp_path / str(size)).mkdir()
        paths.append(tmp_path / str(size) / f"model.{form}")
        paths[-1].write_bytes(content[:size])

    answers = outcomes(*paths)

    assert len(answers) == len(paths)
    assert all("is damaged, or was not copied completely" in answer for answer in answers), answers


def gbtree(model: Any) -> Any:
    return model["learner"]["gradient_booster"]["model"]


def tree(model: Any) -> Any:
    return next(tree for tree in gbtree(model)["trees"] if len(tree["left_children"]) > 3)


def setter(key: str, index: int, value: int) -> Callable[[Any], None]:
    return lambda model: tree(model)[key].__setitem__(index, value)


def uncategorised(model: Any) -> None:
    """Makes the root a categorical split in a tree without categories."""
    names = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
    tree(model).update({name: [] for name in names})
    tree(model)["split_type"][0] = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setter("left_children", 0, 1_000_000), "children"),
        (setter("left_children", 0, 0), "children"),
        (setter("left_children", 0, 2), "child of two splits"),
        (setter("left_children", 0, -1), "a node has only one child"),
        (setter("parents", 1, 1_000_000), "parents"),
        (setter("parents", 1, -1), "parents"),
        (setter("parents", 2, 1), "parents contradict the children"),
        (setter("split_indices", 0, 4), "split_indices"),
        (setter("split_indices", 0, -1), "split_indices"),
        (lambda model: tree(model)["split_conditions"].pop(), "split_conditions has"),
        (lambda model: tree(model)["base_weights"].pop(), "base_weights"),
        (lambda model: tree(model)["tree_param"].update(num_nodes="1000000"), "left_children has"),
        (lambda model: tree(model)["tree_param"].update(num_feature="9"), "tree_param"),
        (uncategorised, "no categories"),
        (
            lambda model: tree(model).update(
                categories_nodes=[0], categories_segments=[5], categories_sizes=[9]
            ),
            "categories_segments",
        ),
        (lambda model: gbtree(model)["tree_info"].__setitem__(0, 3), "tree_info"),
        (lambda model: gbtree(model)["gbtree_model_param"].update(num_trees="7"), "num_trees"),
        (lambda model: gbtree(model)["iteration_indptr"].__setitem__(-1, 99), "iteration_indptr"),
        (lambda model: model["learner"]["learner_model_param"].update(num_class="1000000000"), "outputs"),
        (lambda model: model["learner"].pop("gradient_booster"), "gradient_booster is missing"),
    ],
)
def test_an_xgboost_model_with_wrong_numbers_is_refused(
    tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    model = json.loads(bytes(booster().save_raw("json")))
    change(model)
    (tmp_path / "model.json").write_text(json.dumps(model))

    with pytest.raises(InvalidArgument, match=f"is damaged, or was not copied completely: .*{reason}"):
        xgboost_backend.check_trees(tmp_path / "model.json")


@pytest.mark.parametrize("form", ["json", "ubj"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"booster": "dart"},
        {"tree_method": "approx"},
        {"num_parallel_tree": 3},
        {"objective": "reg:squarederror", "num_class": None},
        {"objective": "reg:quantileerror", "num_class": None, "quantile_alpha": [0.1, 0.9]},
        {"multi_strategy": "multi_output_tree"},
        {"gamma": 5.0, "tree_method": "exact", "max_cat_to_onehot": 1},
        {"gamma": 1e9},
    ],
)
def test_a_model_written_by_xgboost_passes(tmp_path: Path, form: str, parameters: dict[str, Any]) -> None:
    if parameters.get("tree_method") == "exact":
        given = {"objective": "reg:squarederror", **parameters}
        made = xgboost.train(given, xgboost.DMatrix(X, Y), 2)
    else:
        made = booster(**parameters)
    (tmp_path / f"model.{form}").write_bytes(bytes(made.save_raw(form)))

    xgboost_backend.check_trees(tmp_path / f"model.{form}")


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_a_linear_xgboost_model_passes(tmp_path: Path, form: str) -> None:
    given = {"booster": "gblinear", "objective": "multi:softprob", "num_class": 3}
    made = xgboost.train(given, xgboost.DMatrix(X, Y), 2)
    (tmp_path / f"model.{form}").write_bytes(bytes(made.save_raw(form)))

    xgboost_backend.check_trees(tmp_path / f"model.{form}")


def test_a_damaged_description_of_a_catboost_model_is_refused(tmp_path: Path) -> None:
    catboost = pytest.importorskip("catboost")
    model = catboost.CatBoostClassifier(
        iterations=2, depth=2, verbose=0, allow_writing_files=False, thread_count=1
    )
    model.fit(X, Y).save_model(str(tmp_path / "model.cbm"))
    content = (tmp_path / "model.cbm").read_bytes()
    (tmp_path / "model.cbm").write_bytes(content.replace(b'"class_label_type"', b'"mlass_label_type"'))

    with pytest.raises(InvalidArgument, match=r"cannot be loaded by CatBoost .*mlass_label_type"):
        load(tmp_path / "model.cbm")


def test_a_server_survives_half_a_copy_and_serves_the_complete_file(tmp_path: Path) -> None:
    text = lightgbm_text()
    file = tmp_path / "models" / "trees" / "1" / "model.txt"
    file.parent.mkdir(parents=True)
    file.write_text(text[:700])
    poll = ("--model-control-mode", "poll", "--repository-poll-secs", "1")
    with serve(tmp_path / "models", tmp_path / "log", *poll, ready=False) as server:
        server.wait_for("is damaged, or was not copied completely", 60)
        file.write_text(text)
        server.wait_ready()
