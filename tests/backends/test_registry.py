"""Which backend a file gets, and what is imported for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from backends.loading import load
from backline.backends.plugin import BACKENDS
from backline.backends.registry import FORMATS, choose
from backline.engine.config.model_config import ModelConfig, ModelFormat
from backline_client.values.errors import InvalidArgument

BLOCKED = """
import sys
from pathlib import Path
for module in {modules!r}:
    sys.modules[module] = None
from backline.backends.backend import LoadOptions
from backline.backends.registry import choose
from backline_client.values.errors import BacklineError
from backline.engine.config.model_config import ModelConfig
config = ModelConfig('m')
try:
    options = LoadOptions(trust_pickle=True, may_run_code=True)
    choose(config, Path({path!r})).backend().load(Path({path!r}), config, options)
except BacklineError as error:
    print(error.message)
"""
#: File content that passes the checks before the runtime is imported.
STARTS = {
    "model.tflite": b"0000TFL3",
    "model.json": b'{"learner"',
    "model.txt": b"tree\n",
    "model.cbm": b"CBM1",
    "MLmodel": b"flavors:",
    "modules.json": b"[]",
}
EXTRAS = [
    ("model.onnx", "onnxruntime", "onnx"),
    ("model.pt", "torch", "torch"),
    ("saved_model.pb", "tensorflow", "tensorflow"),
    ("model.tflite", "ai_edge_litert", "litert"),
    ("model.xml", "openvino", "openvino"),
    ("model.jax", "jax", "jax"),
    ("model.json", "xgboost", "xgboost"),
    ("model.txt", "lightgbm", "lightgbm"),
    ("model.cbm", "catboost", "catboost"),
    ("model.skops", "sklearn", "sklearn"),
    ("MLmodel", "yaml", "mlflow"),
    ("modules.json", "tokenizers", "embeddings"),
]


@pytest.mark.parametrize(("filename", "module", "extra"), EXTRAS)
def test_a_missing_package_is_reported_with_its_extra(
    filename: str, module: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / filename).write_bytes(STARTS.get(filename, b"model"))
    (tmp_path / "model.bin").touch()
    program = BLOCKED.format(modules=[module, f"{module}.interpreter"], path=str(tmp_path / filename))

    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert f"pip install 'backline[{extra}]'" in printed


@pytest.mark.parametrize(
    ("filename", "backend"),
    [
        ("net.onnx", "onnxruntime"),
        ("net.PT2", "pytorch"),
        ("net.jit", "pytorch"),
        ("net.tflite", "litert"),
        ("net.xml", "openvino"),
        ("model.json", "xgboost"),
        ("net.ubj", "xgboost"),
        ("model.txt", "lightgbm"),
        ("net.cbm", "catboost"),
        ("net.skops", "sklearn"),
        ("net.pkl", "sklearn"),
    ],
)
def test_a_file_is_recognised_by_its_name(filename: str, backend: str) -> None:
    assert choose(ModelConfig("m"), Path(filename)).name == backend


@pytest.mark.parametrize("filename", ["labels.json", "notes.txt", "weights.bin", "model"])
def test_ambiguous_names_are_not_recognised(filename: str) -> None:
    with pytest.raises(InvalidArgument, match="has an unknown format; name its `backend`"):
        choose(ModelConfig("m"), Path(filename))


@pytest.mark.parametrize(
    ("file", "backend"),
    [
        ("saved_model.pb", "tensorflow"),
        ("model.savedmodel/saved_model.pb", "tensorflow"),
        ("MLmodel", "mlflow"),
    ],
)
def test_a_folder_is_recognised_by_its_files(file: str, backend: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()

    assert choose(ModelConfig("m"), tmp_path).name == backend


def test_the_configuration_takes_precedence_over_the_file_name() -> None:
    assert choose(ModelConfig("m", backend="openvino"), Path("model.onnx")).name == "openvino"
    assert choose(ModelConfig("m", platform="pytorch_libtorch"), Path("weights")).name == "pytorch"


def test_a_misspelt_backend_suggests_the_nearest() -> None:
    with pytest.raises(
        InvalidArgument,
        match=re.escape("config.pbtxt: there is no backend 'xgbost', did you mean 'xgboost'?"),
    ):
        choose(ModelConfig("m", backend="xgbost", source="config.pbtxt"), Path("model.json"))


def test_a_folder_in_a_built_in_format_needs_no_scan_of_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scanned() -> tuple[ModelFormat, ...]:
        raise AssertionError("the installed distributions were scanned")

    monkeypatch.setattr(FORMATS, "further", scanned)
    (tmp_path / "saved_model.pb").touch()

    assert choose(ModelConfig("m"), tmp_path).name == "tensorflow"


def test_every_format_has_its_backend_and_every_backend_its_name() -> None:
    configured_only = {"mlflow_pyfunc"}
    assert {format.backend for format in FORMATS} | configured_only == {
        entry.name for entry in BACKENDS.built_in
    }
    for entry in BACKENDS.built_in:
        backend = entry.backend()
        assert backend.name == entry.name


def test_no_runtime_is_imported_before_a_model_needs_it() -> None:
    runtimes = {
        "torch",
        "tensorflow",
        "jax",
        "openvino",
        "xgboost",
        "lightgbm",
        "catboost",
        "sklearn",
        "onnxruntime",
    }
    program = (
        "import sys\nfrom backline.backends.plugin import BACKENDS\nfor entry in BACKENDS.built_in:"
        " entry.backend()\n"
        f"print(*sorted(set(sys.modules) & {runtimes!r}))"
    )

    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        == "\n"
    )


@pytest.mark.parametrize(
    "filename", ["model.onnx", "model.pt", "model.tflite", "model.json", "model.txt", "model.cbm"]
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")],
)
def test_files_that_are_not_models_are_reported(
    filename: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    from backends.served_models import need

    need(
        {"model.onnx": "onnxruntime", "model.pt": "torch", "model.tflite": "ai_edge_litert"}.get(
            filename, "numpy"
        )
    )
    (tmp_path / filename).write_bytes(content)

    with pytest.raises(InvalidArgument, match=f"{filename}' {reason}"):
        load(tmp_path / filename)


def test_the_functions_to_call_before_trials_exist() -> None:
    names = [
        name
        for entry in BACKENDS.built_in
        for names in (entry.imports, *entry.imports_by_suffix.values())
        for name in names
        if ":" in name
    ]

    assert names
    assert all(callable(resolve_name(name)) for name in names)


def test_only_exported_programs_need_the_exporter_before_trials() -> None:
    def imports(filename: str) -> tuple[str, ...]:
        return choose(ModelConfig("m"), Path(filename)).imports_for(Path(filename))

    assert imports("model.pt") == ("torch",)
    assert imports("other.PT2") == ("torch", "backline.plugins.runtimes.pytorch.programs:import_exporter")


@pytest.mark.parametrize(
    ("before", "frozen"),
    [("exempt_imports()", True), ("pass", False)],
    ids=["in the server", "in a program that embeds an engine"],
)
def test_the_garbage_collector_skips_an_imported_runtime(before: str, frozen: bool) -> None:
    program = (
        "import gc; from backline.backends.runtime import import_runtime\n"
        f"from backline.system.garbage import exempt_imports; {before}\n"
        "count = gc.get_freeze_count()\n"
        "import_runtime('xml.dom.minidom', what='This test needs it', extra='test')\n"
        "print(gc.isenabled(), gc.get_freeze_count() > count)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == f"True {frozen}\n"
