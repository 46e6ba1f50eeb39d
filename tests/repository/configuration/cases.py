"""Configurations that Triton 2.51 accepts or refuses; record_triton.py records its answers.

Each key is a model's name. `TENSORS` declares one input and one output. Every model runs in Triton's
Python backend.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final

#: The code of every model.
MODEL: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.zeros((1, 4), np.float32))])
            for _ in requests]
"""
TENSORS: Final = (
    'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } '
    'output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }'
)
_SEQUENCE: Final = (
    'control_input [ { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } } ]'
)


def _batched(text: str = "", size: int = 8) -> str:
    return f"{TENSORS} max_batch_size: {size} {text}"


def _warm_up(inputs: str, more: str = "") -> str:
    return _batched(f'model_warmup {{ name: "w" batch_size: 2 {more} inputs {{ {inputs} }} }}')


_X: Final = 'key: "x" value { data_type: TYPE_FP32 dims: 4 '

TAKEN: Final[dict[str, str]] = {
    "plain": TENSORS,
    "named": f'name: "named" {TENSORS}',
    "no_tensors": "",
    "only_input": 'input { name: "x" data_type: TYPE_INT64 dims: [ -1 ] }',
    "batch": _batched(),
    "batch_of_one": _batched(size=1),
    "dynamic_empty": _batched("dynamic_batching { }"),
    "dynamic_empty_of_one": _batched("dynamic_batching { }", size=1),
    "dynamic_preferred": _batched(
        "dynamic_batching { preferred_batch_size: [ 2, 8 ] max_queue_delay_microseconds: 100 }"
    ),
    "dynamic_preferred_repeated": _batched("dynamic_batching { preferred_batch_size: [ 8, 2, 2 ] }"),
    "dynamic_ordering": _batched("dynamic_batching { preserve_ordering: true }"),
    "dynamic_queue": _batched(
        "dynamic_batching { default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000"
        " allow_timeout_override: true max_queue_size: 16 } }"
    ),
    "dynamic_priorities": _batched(
        "dynamic_batching { priority_levels: 3 default_priority_level: 2 "
        "priority_queue_policy { key: 1 value { max_queue_size: 4 } } }"
    ),
    "dynamic_without_batch": f"{TENSORS} dynamic_batching {{ }}",
    "dynamic_preferred_without_override": _batched(
        "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    ),
    "version_latest": f"{TENSORS} version_policy {{ latest {{ num_versions: 3 }} }}",
    "version_latest_empty": f"{TENSORS} version_policy {{ latest {{ }} }}",
    "version_policy_empty": f"{TENSORS} version_policy {{ }}",
    "version_all": f"{TENSORS} version_policy {{ all {{ }} }}",
    "version_specific": f"{TENSORS} version_policy {{ specific {{ versions: [ 1 ] }} }}",
    "version_specific_more": f"{TENSORS} version_policy {{ specific {{ versions: [ 1, 7 ] }} }}",
    "instance_count": f"{TENSORS} instance_group [ {{ count: 2 }} ]",
    "instance_cpu": f"{TENSORS} instance_group [ {{ kind: KIND_CPU }} ]",
    "instance_auto": f"{TENSORS} instance_group [ {{ kind: KIND_AUTO count: 1 }} ]",
    "instance_model": f"{TENSORS} instance_group [ {{ kind: KIND_MODEL }} ]",
    "instance_named": (
        f'{TENSORS} instance_group [ {{ name: "a" kind: KIND_CPU count: 1 }}, {{ kind: KIND_CPU count: 2 }} ]'
    ),
    "instance_host_policy": f'{TENSORS} instance_group [ {{ kind: KIND_CPU host_policy: "p" }} ]',
    "instance_rate": (
        f"{TENSORS} instance_group [ {{ kind: KIND_CPU rate_limiter "
        f'{{ resources [ {{ name: "r" count: 2 }} ] priority: 2 }} }} ]'
    ),
    "instance_profile": f'{TENSORS} instance_group [ {{ kind: KIND_CPU profile: [ "0" ] }} ]',
    "instance_passive": (
        f"{TENSORS} instance_group [ {{ kind: KIND_CPU count: 1 }}, {{ kind: KIND_CPU passive: true }} ]"
    ),
    "instance_count_zero": f"{TENSORS} instance_group [ {{ kind: KIND_CPU count: 0 }} ]",
    "instance_count_negative": f"{TENSORS} instance_group [ {{ kind: KIND_CPU count: -1 }} ]",
    "reshape": 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }'
    ' output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } max_batch_size: 4',
    "reshape_variable": 'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 1 ] reshape { shape: [ -1 ] } }'
    ' output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }',
    "optional": 'input [ { name: "x" data_type: TYPE_FP32 dims: 1 }, '
    '{ name: "o" data_type: TYPE_STRING dims: 1 optional: true } ]'
    ' output { name: "y" data_type: TYPE_BF16 dims: 1 }',
    "ragged": _batched('input { name: "r" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }'),
    "format": (
        'input { name: "x" data_type: TYPE_UINT8 format: FORMAT_NHWC dims: [ 2, 3, 4 ] } '
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }'
    ),
    "labels": (
        'input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 2 '
        'label_filename: "labels.txt" }'
    ),
    "batch_input": _batched(
        'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "x" }'
        ' batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }'
    ),
    "parameters": (
        f'{TENSORS} parameters {{ key: "b" value {{ string_value: "2" }} }} '
        f'parameters {{ key: "a" value {{ string_value: "" }} }}'
    ),
    "metric_tags": f'{TENSORS} metric_tags {{ key: "a" value: "b" }}',
    "decoupled": f"{TENSORS} model_transaction_policy {{ decoupled: true }}",
    "decoupled_off": f"{TENSORS} model_transaction_policy {{ }}",
    "cache_off": f"{TENSORS} response_cache {{ enable: false }}",
    "cache_on": f"{TENSORS} response_cache {{ enable: true }}",
    "optimization": (
        f"{TENSORS} optimization {{ graph {{ level: 1 }} priority: PRIORITY_MAX eager_batching: true }}"
    ),
    "optimization_memory": (
        f"{TENSORS} optimization {{ input_pinned_memory {{ enable: false }} "
        f"gather_kernel_buffer_threshold: 3 }}"
    ),
    "optimization_empty": f"{TENSORS} optimization {{ }}",
    "warm_up_zero": _warm_up(_X + "zero_data: true }"),
    "warm_up_random": _warm_up(_X + "random_data: true }", "count: 3"),
    "warm_up_file": _warm_up(_X + 'input_data_file: "x.bin" }'),
    "sequence_direct": _batched(f"sequence_batching {{ direct {{ }} {_SEQUENCE} }}"),
    "sequence_default": _batched(f"sequence_batching {{ {_SEQUENCE} }}"),
    "sequence_oldest": _batched(
        "sequence_batching { oldest { max_candidate_sequences: 4 } max_sequence_idle_microseconds: 5000000 }"
    ),
    "sequence_oldest_preferred": _batched(
        "sequence_batching { oldest { max_candidate_sequences: 4 preferred_batch_size: [ 4 ] } }"
    ),
    "sequence_oldest_empty": _batched("sequence_batching { oldest { } }"),
    "sequence_state": _batched(
        'sequence_batching { state [ { input_name: "si" output_name: "so" data_type: TYPE_INT32 dims: [ 1 ]'
        ' initial_state { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true name: "first" } } ] }'
    ),
    "sequence_corrid": _batched(
        "sequence_batching { control_input [ "
        '{ name: "C" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] } ] }'
    ),
    "default_filename": f'{TENSORS} default_model_filename: "model.py"',
    "agents_none": f"{TENSORS} model_repository_agents {{ }}",
    "operations": f'{TENSORS} model_operations {{ op_library_filename: "a.so" }}',
    "metrics": (
        f'{TENSORS} model_metrics {{ metric_control [ {{ metric_identifier {{ family: "f" }} '
        f"histogram_options {{ buckets: [ 1, 2 ] }} }} ] }}"
    ),
    "types": "".join(
        f'input {{ name: "i{number}" data_type: {name} dims: [ -1, {number + 1} ] }} '
        for number, name in enumerate(
            [
                "TYPE_BOOL",
                "TYPE_UINT8",
                "TYPE_UINT16",
                "TYPE_UINT32",
                "TYPE_UINT64",
                "TYPE_INT8",
                "TYPE_INT16",
                "TYPE_INT32",
                "TYPE_INT64",
                "TYPE_FP16",
            ]
        )
    )
    + 'output { name: "y" data_type: TYPE_FP64 dims: [ -1, -1 ] }',
    "full": 'name: "full" '
    f"{_batched('dynamic_batching { preferred_batch_size: 4 } instance_group { count: 2 kind: KIND_CPU }')}"
    ' default_model_filename: "model.py" parameters { key: "k" value { string_value: "v" } } '
    "version_policy { latest { num_versions: 2 } }",
}

REFUSED: Final[dict[str, str]] = {
    "wrong_name": f'name: "other" {TENSORS}',
    "negative_batch": f"{TENSORS} max_batch_size: -1",
    "input_no_name": "input { data_type: TYPE_FP32 dims: 1 }",
    "input_no_type": 'input { name: "x" dims: 1 }',
    "input_no_dims": 'input { name: "x" data_type: TYPE_FP32 }',
    "input_zero_dim": 'input { name: "x" data_type: TYPE_FP32 dims: 0 }',
    "input_negative_dim": 'input { name: "x" data_type: TYPE_FP32 dims: -2 }',
    "input_twice": (
        'input [ { name: "x" data_type: TYPE_FP32 dims: 1 }, { name: "x" data_type: TYPE_FP32 dims: 1 } ]'
    ),
    "output_no_name": "output { data_type: TYPE_FP32 dims: 1 }",
    "output_no_type": 'output { name: "y" dims: 1 }',
    "output_no_dims": 'output { name: "y" data_type: TYPE_FP32 }',
    "output_negative_dim": 'output { name: "y" data_type: TYPE_FP32 dims: [ 1, -3 ] }',
    "output_twice": (
        'output [ { name: "y" data_type: TYPE_FP32 dims: 1 }, { name: "y" data_type: TYPE_FP32 dims: 1 } ]'
    ),
    "format_dims": 'input { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 2, 3 ] }',
    "format_no_batch": (
        'input { name: "x" data_type: TYPE_FP32 format: FORMAT_NHWC dims: [ 2, 3 ] } max_batch_size: 2'
    ),
    "reshape_elements": 'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: 5 } }',
    "reshape_zero": 'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [ 0 ] } }',
    "reshape_variable_lost": 'input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] reshape { shape: [ 4 ] } }',
    "reshape_variable_two": (
        'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2, -1 ] reshape { shape: [ -1, 3, -1 ] } }'
    ),
    "reshape_negative": 'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [ -2 ] } }',
    "reshape_output": 'output { name: "y" data_type: TYPE_FP32 dims: 4 reshape { shape: 5 } }',
    "reshape_empty_no_batch": 'input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }',
    "reshape_empty_of_two": (
        'input { name: "x" data_type: TYPE_FP32 dims: 2 reshape { shape: [ ] } } max_batch_size: 2'
    ),
    "ragged_no_batch": 'input { name: "x" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }',
    "ragged_shape_tensor": (
        'input { name: "x" data_type: TYPE_INT32 dims: 1 is_shape_tensor: true allow_ragged_batch: true } '
        "max_batch_size: 2"
    ),
    "shape_tensor": 'input { name: "x" data_type: TYPE_INT32 dims: 1 is_shape_tensor: true }',
    "labels_missing": (
        f'{TENSORS} output {{ name: "z" data_type: TYPE_FP32 dims: 2 label_filename: "none.txt" }}'
    ),
    "preferred_above_limit": _batched("dynamic_batching { preferred_batch_size: 16 }"),
    "preferred_zero": _batched("dynamic_batching { preferred_batch_size: 0 }"),
    "preferred_negative": _batched("dynamic_batching { preferred_batch_size: -4 }"),
    "preferred_without_batch": f"{TENSORS} dynamic_batching {{ preferred_batch_size: 4 }}",
    "priorities_no_default": _batched("dynamic_batching { priority_levels: 2 }"),
    "priorities_default_above": _batched("dynamic_batching { priority_levels: 2 default_priority_level: 3 }"),
    "priorities_policy_above": _batched(
        "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
        "priority_queue_policy { key: 3 value { } } }"
    ),
    "priorities_policy_zero": _batched(
        "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
        "priority_queue_policy { key: 0 value { } } }"
    ),
    "ordering_with_priorities": _batched(
        "dynamic_batching { priority_levels: 2 default_priority_level: 1 preserve_ordering: true }"
    ),
    "ordering_with_delay": _batched(
        "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY } }"
    ),
    "priority_policy_without_levels": _batched(
        "dynamic_batching { priority_queue_policy { key: 1 value { } } }"
    ),
    "default_priority_without_levels": _batched("dynamic_batching { default_priority_level: 1 }"),
    "instance_gpu": f"{TENSORS} instance_group [ {{ kind: KIND_GPU }} ]",
    "instance_gpus": f"{TENSORS} instance_group [ {{ gpus: [ 0 ] }} ]",
    "instance_cpu_gpus": f"{TENSORS} instance_group [ {{ kind: KIND_CPU gpus: [ 0 ] }} ]",
    "instance_model_gpus": f"{TENSORS} instance_group [ {{ kind: KIND_MODEL gpus: [ 0 ] }} ]",
    "instance_cpu_secondary": (
        f"{TENSORS} instance_group [ {{ kind: KIND_CPU "
        f"secondary_devices [ {{ kind: KIND_NVDLA device_id: 0 }} ] }} ]"
    ),
    "instance_rate_zero": (
        f'{TENSORS} instance_group [ {{ kind: KIND_CPU rate_limiter {{ resources [ {{ name: "r" }} ] }} }} ]'
    ),
    "version_specific_missing": f"{TENSORS} version_policy {{ specific {{ versions: [ 7 ] }} }}",
    "version_specific_empty": f"{TENSORS} version_policy {{ specific {{ }} }}",
    "warm_up_no_type": _warm_up('key: "x" value { dims: 4 zero_data: true }'),
    "warm_up_no_data": _warm_up(_X + "}"),
    "warm_up_zero_false": _warm_up(_X + "zero_data: false }"),
    "warm_up_no_file": _warm_up(_X + 'input_data_file: "none.bin" }'),
    "warm_up_short_file": _warm_up(_X + 'input_data_file: "short.bin" }'),
    "warm_up_negative_dim": _warm_up('key: "x" value { data_type: TYPE_FP32 dims: -1 zero_data: true }'),
    "warm_up_no_name": _batched(f"model_warmup {{ batch_size: 1 inputs {{ {_X} zero_data: true }} }} }}"),
    "warm_up_unknown_input": _warm_up('key: "q" value { data_type: TYPE_FP32 dims: 4 zero_data: true }'),
    "warm_up_batch_above": _batched(
        f'model_warmup {{ name: "w" batch_size: 9 inputs {{ {_X} zero_data: true }} }} }}'
    ),
    "warm_up_no_batch": _batched(f'model_warmup {{ name: "w" inputs {{ {_X} zero_data: true }} }} }}'),
    "warm_up_no_inputs": _batched('model_warmup { name: "w" batch_size: 1 }'),
    "warm_up_string_random": _warm_up('key: "x" value { data_type: TYPE_STRING dims: 4 random_data: true }'),
    "sequence_control_no_name": _batched(
        "sequence_batching { control_input [ "
        "{ control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } } ] }"
    ),
    "sequence_control_one_value": _batched(
        'sequence_batching { control_input [ { name: "s" control { kind: CONTROL_SEQUENCE_START '
        "fp32_false_true: [ 0 ] } } ] }"
    ),
    "sequence_control_two_types": _batched(
        'sequence_batching { control_input [ { name: "s" control { kind: CONTROL_SEQUENCE_START '
        "fp32_false_true: [ 0, 1 ] int32_false_true: [ 0, 1 ] } } ] }"
    ),
    "sequence_control_twice": _batched(
        'sequence_batching { control_input [ { name: "s" control { kind: CONTROL_SEQUENCE_START '
        "fp32_false_true: [ 0, 1 ] } },"
        ' { name: "t" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } } ] }'
    ),
    "sequence_control_same_tensor": _batched(
        'sequence_batching { control_input [ { name: "s" control { kind: CONTROL_SEQUENCE_START '
        "fp32_false_true: [ 0, 1 ] } },"
        ' { name: "s" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } } ] }'
    ),
    "sequence_control_no_values": _batched(
        'sequence_batching { control_input [ { name: "s" control { kind: CONTROL_SEQUENCE_READY } } ] }'
    ),
    "sequence_corrid_type": _batched(
        "sequence_batching { control_input [ "
        '{ name: "C" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } ] } ] }'
    ),
    "sequence_corrid_values": _batched(
        'sequence_batching { control_input [ { name: "C" control [ { kind: CONTROL_SEQUENCE_CORRID '
        "data_type: TYPE_UINT64 fp32_false_true: [ 0, 1 ] } ] } ] }"
    ),
    "sequence_cache": _batched("sequence_batching { } response_cache { enable: true }"),
    "sequence_oldest_preferred_above": _batched(
        "sequence_batching { oldest { max_candidate_sequences: 4 preferred_batch_size: [ 9 ] } }"
    ),
    "sequence_oldest_preferred_zero": _batched(
        "sequence_batching { oldest { max_candidate_sequences: 4 preferred_batch_size: [ 0 ] } }"
    ),
    "sequence_direct_utilization": _batched("sequence_batching { direct { minimum_slot_utilization: 2 } }"),
    "sequence_state_no_name": _batched(
        'sequence_batching { state [ { output_name: "so" data_type: TYPE_INT32 dims: [ 1 ] } ] }'
    ),
    "sequence_state_initial_no_name": _batched(
        'sequence_batching { state [ { input_name: "si" output_name: "so" data_type: TYPE_INT32 dims: [ 1 ]'
        " initial_state { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } } ] }"
    ),
    "sequence_state_initial_type": _batched(
        'sequence_batching { state [ { input_name: "si" output_name: "so" data_type: TYPE_INT32 dims: [ 1 ]'
        ' initial_state { data_type: TYPE_INT64 dims: [ 1 ] zero_data: true name: "a" } } ] }'
    ),
    "sequence_state_initial_dims": _batched(
        'sequence_batching { state [ { input_name: "si" output_name: "so" data_type: TYPE_INT32 dims: [ 1 ]'
        ' initial_state { data_type: TYPE_INT32 dims: [ 2 ] zero_data: true name: "a" } } ] }'
    ),
    "sequence_state_initial_file": _batched(
        'sequence_batching { state [ { input_name: "si" output_name: "so" data_type: TYPE_INT32 dims: [ 1 ]'
        ' initial_state { data_type: TYPE_INT32 dims: [ 1 ] data_file: "none" name: "a" } } ] }'
    ),
    "sequence_iterative_no_oldest": _batched("sequence_batching { iterative_sequence: true }"),
    "decoupled_cache": (
        f"{TENSORS} model_transaction_policy {{ decoupled: true }} response_cache {{ enable: true }}"
    ),
    "platform_unknown": f'{TENSORS} platform: "guessed"',
    "batch_input_no_source": _batched(
        'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 }'
    ),
    "batch_input_two_targets": _batched(
        'batch_input { kind: BATCH_ELEMENT_COUNT target_name: [ "n", "o" ] data_type: TYPE_FP32 '
        'source_input: "x" }'
    ),
    "batch_input_type": _batched(
        'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_STRING source_input: "x" }'
    ),
    "batch_input_source": _batched(
        'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "q" }'
    ),
    "batch_output_source": _batched(
        'batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "q" }'
    ),
    "batch_output_target": _batched(
        'batch_output { target_name: "q" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }'
    ),
    "batch_output_two": _batched(
        'batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: [ "x", "x" ] }'
    ),
    "ensemble_no_step": f'platform: "ensemble" {TENSORS} ensemble_scheduling {{ }}',
    "ensemble_without_scheduling": f'platform: "ensemble" {TENSORS}',
    "ensemble_instance": (
        f'platform: "ensemble" {TENSORS} ensemble_scheduling {{ step {{ model_name: "a" }} }} '
        f"instance_group {{ count: 1 }}"
    ),
    "unknown_field": f"{TENSORS} max_batch_sise: 3",
    "unknown_value": "input { name: 'x' data_type: TYPE_FLOAT dims: 1 }",
    "syntax": "name 3",
    "agent_unknown": f'{TENSORS} model_repository_agents {{ agents [ {{ name: "a" }} ] }}',
    "metrics_no_family": (
        f"{TENSORS} model_metrics {{ metric_control [ {{ histogram_options {{ buckets: [ 1, 2 ] }} }} ] }}"
    ),
}

#: With --disable-auto-complete-config.
NOT_COMPLETED: Final[dict[str, str]] = {
    "strict_plain": TENSORS,
    "strict_no_input": 'output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }',
    "strict_no_output": 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }',
    "strict_empty": "",
}

#: The `config` parameter of a load, as JSON or as text that may not be JSON.
OVERRIDES: Final[dict[str, object]] = {
    "override_plain": {
        "backend": "python",
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["4"]}],
    },
    "override_camel": {
        "backend": "python",
        "maxBatchSize": 4,
        "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": ["4"]}],
    },
    "override_not_json": "max_batch_size: 4",
    "override_unknown_field": {"backend": "python", "max_batch_sise": 4},
    "override_wrong_type": {"backend": "python", "max_batch_size": "many"},
    "override_wrong_value": {
        "backend": "python",
        "input": [{"name": "x", "data_type": "TYPE_FLOAT", "dims": [4]}],
    },
    "override_wrong_name": {"name": "other", "backend": "python"},
    "override_list": [1],
    "override_empty": "",
    "override_negative": {"backend": "python", "max_batch_size": -1},
}

#: Parts of a configuration with one fault each; each pair of them shows which fault is reported first. They
#: follow TENSORS and a max_batch_size of 8.
FAULTS: Final[dict[str, str]] = {
    "name": 'name: "other"',
    "dynamic": "dynamic_batching { preferred_batch_size: 16 }",
    "sequence": "sequence_batching { direct { minimum_slot_utilization: 2 } }",
    "cache": "response_cache { enable: true } model_transaction_policy { decoupled: true }",
    "ensemble": 'platform: "ensemble"',
    "platform": 'platform: "guessed"',
    "agent": 'model_repository_agents { agents [ { name: "a" } ] }',
    "policy": "version_policy { specific { versions: [ 7 ] } }",
    "input": 'input { name: "q" dims: 1 }',
    "output": 'output { name: "q" dims: 1 }',
    "reshape": 'input { name: "r" data_type: TYPE_FP32 dims: 4 reshape { shape: 5 } }',
    "labels": 'output { name: "l" data_type: TYPE_FP32 dims: 2 label_filename: "none.txt" }',
    "state": (
        'sequence_batching { state [ { input_name: "si" output_name: "so" data_type: TYPE_INT32 dims: 1'
        " initial_state { data_type: TYPE_INT32 dims: 1 zero_data: true } } ] }"
    ),
    "batch_input": 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 }',
    "instance": "instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]",
    "profile": 'instance_group [ { kind: KIND_CPU profile: [ "0" ] } ]',
    "warm_up": f'model_warmup {{ name: "w" batch_size: 2 inputs {{ {_X} }} }} }}',
    "sample": (
        'model_warmup { name: "v" batch_size: 2'
        ' inputs { key: "x" value { data_type: TYPE_FP32 dims: -1 zero_data: true } } }'
    ),
}
_REPEATED: Final = {"input", "output", "instance_group", "model_warmup"}
_SCHEDULERS: Final = {"dynamic_batching", "sequence_batching"}


def _pairs() -> dict[str, str]:
    """The configurations with two faults, except in fields that exclude each other."""
    pairs = {}
    for first, second in combinations(FAULTS, 2):
        fields = {FAULTS[one].split()[0].rstrip(":") for one in (first, second)}
        if (len(fields) == 1 and not fields <= _REPEATED) or fields <= _SCHEDULERS:
            continue
        pairs[f"{first}_and_{second}"] = _batched(f"{FAULTS[first]} {FAULTS[second]}")
    return pairs


PAIRS: Final[dict[str, str]] = _pairs()
