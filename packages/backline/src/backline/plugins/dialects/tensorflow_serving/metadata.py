"""A model's signature in the form of TensorFlow's SignatureDef."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from backline.engine.model import Model
from backline.plugins.dialects.tensorflow_serving.reader import DEFAULT_SIGNATURE, SIGNATURE
from backline.plugins.dialects.tensorflow_serving.texts import NAMES
from backline_client.values.signature import TensorSpec

_PREDICT: Final = "tensorflow/serving/predict"


def signature_document(model: Model) -> dict[str, Any]:
    """Returns the metadata of a version in JSON's form of GetModelMetadataResponse."""
    signature = {
        "inputs": _tensors(model.signature.inputs),
        "outputs": _tensors(model.signature.outputs),
        "method_name": _PREDICT,
        "defaults": {},
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
        "metadata": {"signature_def": {"signature_def": {signature_name(model): signature}}},
    }


def signature_name(model: Model) -> str:
    """Returns the name of the only signature that a model serves."""
    return model.config.parameters.get(SIGNATURE) or DEFAULT_SIGNATURE


def _tensors(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": f"DT_{NAMES[spec.datatype].upper()}",
            "tensor_shape": {
                "dim": [{"size": str(size), "name": ""} for size in spec.shape],
                "unknown_rank": False,
            },
            "name": f"{spec.name}:0",
        }
        for spec in specs
    }
