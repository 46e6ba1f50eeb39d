"""The module that models for Triton's Python backend import. The folder of the module is on sys.path in every
worker that runs a Python file.
"""

from __future__ import annotations

from backline.workers.child.triton.errors import TritonError, TritonModelException
from backline.workers.child.triton.metrics import Metric, MetricFamily, MetricKind
from backline.workers.child.triton.model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from backline.workers.child.triton.requests import RELEASE_ALL as TRITONSERVER_REQUEST_RELEASE_ALL
from backline.workers.child.triton.requests import (
    RELEASE_RESCHEDULE as TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
)
from backline.workers.child.triton.requests import SEQUENCE_END as TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
from backline.workers.child.triton.requests import SEQUENCE_START as TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
from backline.workers.child.triton.requests import (
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_MEMORY_GPU,
    InferenceRequest,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
    ResponseIterator,
    get_input_tensor_by_name,
    is_model_ready,
    load_model,
    unload_model,
)
from backline.workers.child.triton.responses import FINAL as TRITONSERVER_RESPONSE_COMPLETE_FINAL
from backline.workers.child.triton.responses import (
    InferenceResponse,
    InferenceResponseSender,
    get_output_tensor_by_name,
)
from backline.workers.child.triton.tensor import (
    TRITON_STRING_TO_NUMPY,
    Tensor,
    deserialize_bytes_tensor,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from backline.workers.child.triton.worker import Logger, get_model_dir

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "ModelConfig",
    "PreferredMemory",
    "ResponseIterator",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]
