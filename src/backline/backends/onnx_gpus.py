"""The GPUs that the installed ONNX Runtime can really compute on."""

from __future__ import annotations

from functools import cache
from typing import Any

from backline.backends.cuda import cuda_gpus
from backline.backends.onnx_providers import CUDA, Provider
from backline.engine.device import Gpus

#: An ONNX model that gives one number back.
_TINY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


@cache
def usable_gpus(runtime: Any) -> Gpus:
    """Those of the driver, if ONNX Runtime can make a session on them: its provider is there without the libraries that it needs."""
    gpus = cuda_gpus()
    if gpus.indexes and (preload := getattr(runtime, "preload_dlls", None)) is not None:
        preload()  # of CUDA's packages, which are not where the system looks
    if gpus.indexes and not can_use(runtime, (CUDA, {"device_id": str(gpus.indexes[0])})):
        return Gpus(
            reason=f"the {CUDA} of ONNX Runtime {runtime.__version__} cannot be used: CUDA or cuDNN is missing, or has another version than"
            " it was built for (pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )
    return gpus


def can_use(runtime: Any, provider: Provider) -> bool:
    """Whether a session gets a provider: ONNX Runtime goes on with the CPU where one fails, and tells only its log."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal
    try:
        session = runtime.InferenceSession(_TINY, options, providers=[provider])
    except Exception:
        return False
    return provider[0] in session.get_providers()
