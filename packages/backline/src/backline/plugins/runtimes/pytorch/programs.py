"""Loads all kinds of PyTorch programs as functions that take a flat list of arguments."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from backline.backends.runtime import LLVM_IMPORT, cuda_gpus, loading, unservable
from backline.engine.device import Device, Gpus
from backline.plugins.runtimes.pytorch.files import check_graphs, check_source, compiled_for, has_loop
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec

_DATATYPES = {
    "torch.bool": DataType.BOOL,
    "torch.uint8": DataType.UINT8,
    "torch.uint16": DataType.UINT16,
    "torch.uint32": DataType.UINT32,
    "torch.uint64": DataType.UINT64,
    "torch.int8": DataType.INT8,
    "torch.int16": DataType.INT16,
    "torch.int32": DataType.INT32,
    "torch.int64": DataType.INT64,
    "torch.float16": DataType.FP16,
    "torch.bfloat16": DataType.BF16,
    "torch.float32": DataType.FP32,
    "torch.float64": DataType.FP64,
}
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_weights_only_lock = Lock()


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a program. An argument without a default is `required`.

    `type` is the argument's type as TorchScript writes it, such as "Tensor", "List[str]" or "int".
    """

    name: str
    type: str = "Tensor"
    required: bool = True


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program. `call` takes the values of `arguments`, in order; optional ones may be omitted.

    `inputs` and `outputs` are None if the file does not describe them. `loops` means that the value of an
    argument may determine how long a call takes.
    """

    arguments: tuple[Argument, ...]
    call: Callable[..., Any]
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    loops: bool = False


def load_script(torch: Any, path: Path, device: str | None) -> Program:
    """Loads TorchScript onto a device; None means the devices that the file names.

    The code can access neither Python nor files: see `check_source`.
    """
    # Hides PyTorch's advice to call another function, which users of the server cannot follow.
    warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
    own_names = check_source(path)
    with loading(path, f"PyTorch {torch.__version__}"):
        module = torch.jit.load(str(path), map_location=device)
    check_graphs(path, module, inlined=own_names)
    module.eval()
    forward = getattr(module, "forward", None)
    if forward is None:
        raise InvalidArgument(
            f"'{path}' has no method forward, which requests would call: save a module that has one"
        )
    arguments = []
    for argument in forward.schema.arguments[1:]:
        kind = str(argument.type)
        arguments.append(
            Argument(
                argument.name,
                kind.removeprefix("Optional[").removesuffix("]") if "Optional" in kind else kind,
                not argument.has_default_value(),
            )
        )
    return Program(tuple(arguments), module, loops=has_loop(module))


def load_exported(torch: Any, path: Path, device: str | None) -> Program:
    """Loads a torch.export program onto a device; None means the device on which the program was exported."""
    import_exporter()  # only when it is needed, because the import takes seconds
    pytree = import_module("torch.utils._pytree")
    with _weights_only(), loading(path, f"PyTorch {torch.__version__}"):
        exported = import_module("torch.export").load(str(path))
    if device is not None and (device != "cpu" or _is_elsewhere(exported)):
        exported = import_module("torch.export.passes").move_to_device_pass(exported, device)

    graph = exported.graph_signature
    placeholders = {
        node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"
    }
    tensors = [
        (index, str(name))
        for index, name in enumerate(graph.user_inputs)
        if isinstance(placeholders.get(name), torch.Tensor)
    ]
    constants = list(graph.user_inputs)
    module = exported.module()
    in_spec = exported.call_spec.in_spec

    def call(*values: Any) -> Any:
        flat = list(constants)
        for (index, _), value in zip(tensors, values, strict=True):
            flat[index] = value
        args, kwargs = pytree.tree_unflatten(flat, in_spec)
        return module(*args, **kwargs)

    inputs = tuple(_spec(path, "input", name, placeholders[name]) for _, name in tensors)
    output_node = next(node for node in exported.graph.nodes if node.op == "output")
    by_name = {node.name: node.meta.get("val") for node in output_node.args[0] if hasattr(node, "name")}
    names = output_names(torch, exported.call_spec.out_spec, len(graph.user_outputs))
    outputs = tuple(
        _spec(path, "output", name, by_name.get(node))
        for name, node in zip(names, graph.user_outputs, strict=True)
    )
    arguments = tuple(Argument(name) for _, name in tensors)
    return Program(arguments, call, inputs, outputs, loops=_has_while(exported))


def _has_while(exported: Any) -> bool:
    """Returns whether a torch.export program has a while loop, including the parts that the program calls."""
    graphs = (part.graph for part in exported.graph_module.modules() if hasattr(part, "graph"))
    return any("while_loop" in str(node.target) for graph in graphs for node in graph.nodes)


def load_compiled(torch: Any, path: Path, device: str | None) -> Program:
    """Loads an AOTInductor package. The package is machine code, so the caller must trust the file.

    Raises InvalidArgument if the package was compiled for another kind of device.
    """
    wanted, kind = torch.device(device or "cpu"), compiled_for(path)
    if device is not None and kind not in ("", wanted.type):
        raise InvalidArgument(
            f"'{path}' was compiled for {kind}, and cannot run on {device}; choose another kind in"
            " instance_group, or compile the network again"
        )
    index = -1 if wanted.index is None else wanted.index
    _import_compiler()
    with loading(path, f"PyTorch {torch.__version__}"):
        package = import_module("torch._inductor").aoti_load_package(str(path), device_index=index)
    in_spec, _ = package.loader.get_call_spec()
    count = import_module("torch.utils._pytree").treespec_loads(in_spec).num_leaves
    return Program(tuple(Argument(f"INPUT__{index}", required=False) for index in range(count)), package)


def import_exporter() -> None:
    """Imports the modules that torch.export programs need, which takes seconds."""
    _import_compiler()
    import_module("torch.export.pt2_archive")


def _import_compiler() -> None:
    with LLVM_IMPORT:
        if "tensorflow" in sys.modules:  # blocks the import of the Triton compiler, see LLVM_IMPORT
            sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
        import_module("torch._dynamo")


def output_names(torch: Any, out_spec: Any, count: int) -> list[str]:
    """Returns the names of a program's outputs: the keys of a dict, or else OUTPUT__0 and so on."""
    keys = list(out_spec.context) if out_spec is not None and out_spec.type is dict else []
    if len(keys) == count and all(isinstance(key, str) for key in keys):
        return keys
    return [f"OUTPUT__{index}" for index in range(count)]


def flatten(value: Any) -> Iterator[Any]:
    """Yields the outputs in a program's result, from left to right. A list of strings is a single output."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)) or (value and isinstance(value[0], str)):
        yield value
        return
    for part in value:
        yield from flatten(part)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Prevents torch.load, which torch.export.load may call, from executing pickles."""
    with _weights_only_lock:
        before = os.environ.get(_WEIGHTS_ONLY)
        os.environ[_WEIGHTS_ONLY] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_WEIGHTS_ONLY]
            else:
                os.environ[_WEIGHTS_ONLY] = before


def _spec(path: Path, kind: str, name: str, value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(str(getattr(value, "dtype", "")))
    if datatype is None:
        found = f"a tensor of {value.dtype}" if hasattr(value, "dtype") else f"a {type(value).__name__}"
        raise unservable(path, kind, name, found)
    return TensorSpec(name, datatype, tuple(dim if type(dim) is int else -1 for dim in value.shape))


def _is_elsewhere(exported: Any) -> bool:
    """Returns whether a program was exported on a GPU."""
    tensors = (*exported.state_dict.values(), *exported.constants.values())
    return any(getattr(tensor, "is_cuda", False) for tensor in tensors)


def usable_gpus(torch: Any) -> Gpus:
    """Returns the GPUs that PyTorch can use through CUDA or ROCm (which PyTorch also calls CUDA)."""
    if not (torch.version.cuda or torch.version.hip):
        return Gpus(
            reason=f"the installed PyTorch {torch.__version__} supports only the CPU:"
            " pip install torch from an index of builds with CUDA (https://pytorch.org/get-started)"
        )
    if not torch.cuda.is_available():
        why = cuda_gpus().reason or "there is no GPU that it supports"
        return Gpus(reason=f"PyTorch {torch.__version__} cannot use a GPU: {why}")
    return Gpus(tuple(range(torch.cuda.device_count())))


def device_name(device: Device) -> str | None:
    """Returns PyTorch's name for a device; None if the file chooses the device (KIND_MODEL)."""
    return {"cpu": "cpu", "gpu": f"cuda:{device.index}", "model": None}[device.kind]


def moving(torch: Any, call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wraps a program that runs on the device `name`, so that it also accepts tensors on the CPU."""
    device = torch.device(name)

    def current() -> AbstractContextManager[Any]:
        # Makes the device the current GPU, because the program may create tensors on the current GPU.
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def run(*values: Any) -> Any:
        with current():
            return call(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in values))

    return run
