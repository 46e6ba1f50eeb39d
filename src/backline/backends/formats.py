"""Which files are models, and of which backend: the only table of formats.

A file's name decides, never its content. Names with another common meaning (model.json, model.txt) are only
recognised as a whole. They are the names that frameworks' tools and Triton's backends write. A name with "/"
is a path below the version's folder.
"""

from __future__ import annotations

from backline.engine.model_format import ModelFormat

ONNX = ModelFormat("onnxruntime", ("model.onnx",), (".onnx",))
PYTORCH = ModelFormat("pytorch", ("model.pt", "model.pt2", "model.jit"), (".pt", ".pt2", ".jit"))
SAVED_MODEL = ModelFormat("tensorflow", ("model.savedmodel/saved_model.pb", "saved_model.pb"), folder=True)
LITERT = ModelFormat("litert", ("model.tflite",), (".tflite",))
OPENVINO = ModelFormat("openvino", ("model.xml",), (".xml",))
JAX = ModelFormat("jax", ("model.jax",), (".jax",))
XGBOOST = ModelFormat("xgboost", ("model.ubj", "model.json", "xgboost.ubj", "xgboost.json"), (".ubj",))
LIGHTGBM = ModelFormat("lightgbm", ("model.txt", "lightgbm.txt"))
CATBOOST = ModelFormat("catboost", ("model.cbm",), (".cbm",))
SKLEARN = ModelFormat(
    "sklearn", ("model.skops", "model.joblib", "model.pkl"), (".skops", ".joblib", ".pkl", ".pickle")
)
MLFLOW = ModelFormat("mlflow", ("MLmodel", "model/MLmodel"), folder=True)
PYTHON = ModelFormat("python", ("model.py",))
TORCHSERVE = ModelFormat("torchserve", ("model.mar", "model.tar.gz", "model.tgz"), (".mar",))
TORCHSERVE_FOLDER = ModelFormat("torchserve", ("MAR-INF/MANIFEST.json",), folder=True)
#: Without file names: the model is the version's folder. Only configured, never recognised.
IDENTITY = ModelFormat("identity", (), folder=True)
REPEAT = ModelFormat("repeat", (), folder=True)
SQUARE = ModelFormat("square", (), folder=True)

#: The formats to look for if a configuration names no backend, by preference. Folder formats precede those of
#: files in them.
FORMATS: tuple[ModelFormat, ...] = (
    TORCHSERVE_FOLDER,
    MLFLOW,
    SAVED_MODEL,
    ONNX,
    PYTORCH,
    LITERT,
    OPENVINO,
    JAX,
    XGBOOST,
    LIGHTGBM,
    CATBOOST,
    SKLEARN,
    PYTHON,
    TORCHSERVE,
    IDENTITY,
    REPEAT,
    SQUARE,
)
