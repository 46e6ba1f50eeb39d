"""ONNX Runtime's options, read from a model's `parameters`. Options that Triton has too have its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from backline.backends.parameters import unknown_parameter
from backline.engine.config.model_config import ModelConfig
from backline.plugins.runtimes.onnx.providers import PARAMETER as PROVIDERS
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

Value = TypeVar("Value")

#: Prefixes of parameters that are passed to the session unchanged (onnxruntime_session_options_config_keys.h)
_SESSION_PREFIXES = ("session.", "optimization.", "mlas.")
#: The session options that a model may set; they only change how a run is computed. Other options read or
#: write files with the server's permissions (collect_node_memory_stats_to_file, optimized_model_filepath,
#: node_partition_config_file, moe.offload.*). This is an allow-list because every release adds options.
_SESSION_KEYS = frozenset(
    {
        "mlas.disable_kleidiai",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "mlas.qnbit.force_fp32",
        "mlas.use_lut_gemm",
        "optimization.constant_folding_max_output_size_in_bytes",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.allow_released_opsets_only",
        "session.disable_aot_function_inlining",
        "session.disable_cpu_ep_fallback",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_qdq_constant_folding",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.inter_op.spin_backoff_max",
        "session.inter_op.spin_duration_us",
        "session.intra_op.allow_spinning",
        "session.intra_op.spin_backoff_max",
        "session.intra_op.spin_duration_us",
        "session.intra_op_thread_affinities",
        "session.prepack.enable_parallel",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
        "session.x64quantprecision",
    }
)
#: Parameters that are passed to each run unchanged.
_RUN_KEYS = ("memory.enable_memory_arena_shrinkage",)
_NO_SPINNING = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
#: Prefixes of the parameters that say how a run uses threads.
_OF_THREADS = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "session.intra_op",
    "session.inter_op",
    "session.force_spinning_stop",
)
#: The settings for the threads of a spread run, which uses only idle cores. The threads spin during the short
#: pauses within a run, because waking a sleeping thread takes longer than such a pause. When the run ends,
#: they sleep.
_BRIEF_SPINNING = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "100",
    "session.force_spinning_stop": "1",
}
_EXECUTION_MODES = {
    "0": "ORT_SEQUENTIAL",
    "1": "ORT_PARALLEL",
    "sequential": "ORT_SEQUENTIAL",
    "parallel": "ORT_PARALLEL",
}
_OPTIMIZATION_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_FLAGS = {"0": False, "1": True, "false": False, "true": True}
_KEYS = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "graph_optimization_level",
    "enable_mem_arena",
    "enable_mem_pattern",
    PROVIDERS,
    *_RUN_KEYS,
)


class SessionSettings(Struct, frozen=True):
    """The settings of a session.

    A run uses one thread by default, because several parallel runs use the cores better than one run on all
    cores. Idle threads do not spin, because spinning would take CPU time from the server.
    """

    intra_op_threads: int = 1
    inter_op_threads: int = 1
    execution_mode: str = "ORT_SEQUENTIAL"
    graph_optimization_level: str = "ORT_ENABLE_ALL"
    memory_arena: bool = True
    memory_pattern: bool = True
    session_entries: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_NO_SPINNING))
    run_entries: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()


_DEFAULT = SessionSettings()


def read_settings(config: ModelConfig) -> SessionSettings:
    """Reads the settings from `config.parameters`. Unknown keys cause warnings.

    Raises InvalidArgument for an invalid value, and for a session option that a model may not set.
    """
    given = config.parameters
    default = _DEFAULT
    if not given and not config.cpus:
        return default

    def read(key: str, convert: Callable[[str], Value], otherwise: Value, expected: str) -> Value:
        if key not in given:
            return otherwise
        try:
            return convert(given[key].strip().lower())
        except (KeyError, ValueError):
            raise InvalidArgument(
                f"parameter '{key}' of model '{config.name}' is '{given[key]}', expected {expected}"
            ) from None

    a_count = "a number of threads up to 1024, 0 for one per core"
    threads = read("intra_op_thread_count", _count, default.intra_op_threads, a_count)
    if config.cpus and threads == 0:
        threads = len(config.cpus)
    own = {key: value for key, value in given.items() if key.startswith(_SESSION_PREFIXES)}
    for key in own:
        if key not in _SESSION_KEYS:
            raise InvalidArgument(_refused(config.name, key))
    session_entries = {**default.session_entries, **_affinities(config.cpus, threads), **own}
    return SessionSettings(
        intra_op_threads=threads,
        inter_op_threads=read("inter_op_thread_count", _count, default.inter_op_threads, a_count),
        execution_mode=read(
            "execution_mode",
            _EXECUTION_MODES.__getitem__,
            default.execution_mode,
            "0 (sequential) or 1 (parallel)",
        ),
        graph_optimization_level=read(
            "graph_optimization_level",
            _OPTIMIZATION_LEVELS.__getitem__,
            default.graph_optimization_level,
            f"one of {', '.join(_OPTIMIZATION_LEVELS)}",
        ),
        memory_arena=read("enable_mem_arena", _FLAGS.__getitem__, default.memory_arena, "0 or 1"),
        memory_pattern=read("enable_mem_pattern", _FLAGS.__getitem__, default.memory_pattern, "0 or 1"),
        session_entries=MappingProxyType(session_entries),
        run_entries=MappingProxyType({key: given[key] for key in _RUN_KEYS if key in given}),
        warnings=tuple(
            unknown_parameter(config.name, "onnxruntime", key, _KEYS)
            for key in given
            if key not in _KEYS and not key.startswith(_SESSION_PREFIXES)
        ),
    )


def spread_settings(config: ModelConfig, settings: SessionSettings, threads: int) -> SessionSettings | None:
    """Returns the settings of a session whose runs use `threads` threads, which otherwise equal `settings`.

    Returns None if the configuration's parameters already say how runs use threads.
    """
    if any(key.startswith(_OF_THREADS) for key in config.parameters):
        return None
    entries = {**settings.session_entries, **_affinities(config.cpus, threads), **_BRIEF_SPINNING}
    return replace(settings, intra_op_threads=threads, session_entries=MappingProxyType(entries))


def _affinities(cores: Sequence[int], threads: int) -> dict[str, str]:
    """Returns options that pin the helper threads of a run to cores, which ONNX Runtime counts from 1."""
    if not cores or threads < 2:
        return {}
    group = ",".join(str(core + 1) for core in cores)
    return {"session.intra_op_thread_affinities": ";".join([group] * (threads - 1))}


def _count(text: str) -> int:
    count = int(text)
    if not 0 <= count <= 1024:
        raise ValueError(text)
    return count


def _refused(model: str, key: str) -> str:
    near = nearest(key, _SESSION_KEYS, 1)
    hint = f"did you mean '{near[0]}'?" if near else "remove it"
    return f"parameter '{key}' of model '{model}' is not a session option that a model may set; {hint}"
