"""Refuses SavedModels whose operations access files, the network or Python, except to restore the model. Also
finds loops.

The graph of a SavedModel also contains operations for saving, so only operations that can run are checked:
those needed by signatures (which may not read files), by initialisation (which may read tables from the
model's own assets), and by the restore operation (which may read the model's own variables).

The list is not a sandbox. A process of its own contains crashes and memory, but it may read the same files as
the server; the list keeps a model that somebody else made from reading or sending them through TensorFlow's
documented operations. A release of TensorFlow may add operations that it does not know, and a bug in a kernel
needs no operation of this list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any, Final

from backline.backends.backend import COMPILES, LOOPS
from backline_client.values.errors import InvalidArgument

#: Operations (from tensorflow/core/ops and kernels) that access files, input pipelines, summaries, protobuf
#: descriptors in files, dumps, the network or Python. Dataset operations are included because optimisers
#: rewrite the graphs in them, so checking these graphs would prove nothing.
_FORBIDDEN: Final = re.compile(
    r"""
    (Read|Write)File|MatchingFiles|FileSystemSetConfiguration|Save.*|Restore.*|DTensorRestoreV2
    |DistributedSave|MergeV2Checkpoints|RecordInput|Skipgram|ImmutableConst|Reader[A-Z].*
    |(WholeFile|TextLine|FixedLengthRecord|TFRecord|LMDB|Identity)Reader(V2)?
    |FixedUnigramCandidateSampler|InitializeTableFromTextFile(V2)?|LoadAndRemapMatrix
    |GenerateVocabRemapping|CalibrationStatisticsSaver|.*Dataset.*|.*Iterator.*|.*SummaryWriter
    |CreateSummary.*|Write.*Summary|PrintV2|DecodeProtoV2|EncodeProto|Debug.*|DumpTensor
    |InitializeTRTResource|SerializeTRTResource|.*PyFunc.*|Rpc.*|Collective.*|_?Send|_?Recv
    |_Host(Send|Recv)|RemoteCall|.*DistributedTPU|XlaCustomCall.*
    """,
    re.VERBOSE,
)
#: Harmless output streams of PrintV2, an operation that older SavedModels contain.
_LOGS: Final = frozenset({"", "stderr", "stdout", "log(info)", "log(warning)", "log(error)"})
#: Operations that may read the model's own files, and the index of the input that names the file.
_RESTORES: Final = {"RestoreV2": 0}
_TABLES: Final = {"InitializeTableFromTextFile": 1, "InitializeTableFromTextFileV2": 1}
#: Operations that pass their inputs one to one to the function that they call. In functions called by other
#: operations (If, While), no argument counts as a file name set by TensorFlow.
_CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
#: Operations that form loops: a whole loop as one operation, or the edge from one iteration to the next.
_LOOPS: Final = frozenset({"While", "StatelessWhile", "For", "NextIteration", "RefNextIteration"})
#: Operations that XLA compiles for each shape of their inputs, and the attribute that marks calls to be
#: compiled.
_COMPILED: Final = frozenset({"XlaCallModule", "XlaLaunch", "XlaLaunchV2"})
_MUST_COMPILE: Final = "_XlaMustCompile"
_INIT_SIGNATURE: Final = "__saved_model_init_op"
_INIT_COLLECTIONS: Final = ("saved_model_main_op", "legacy_init_op")
_Names = frozenset[str]


def check_operations(folder: Path, meta: Any) -> str:
    """Raises InvalidArgument, which names the operation, if a MetaGraphDef has a forbidden operation.

    Returns the value of UnboundedModel.unbounded.
    """
    graph = _Graph(folder, meta.graph_def)
    assets = frozenset(asset.tensor_info.name for asset in meta.asset_file_def)
    for asset in meta.asset_file_def:
        if PurePosixPath(asset.filename).is_absolute() or ".." in PurePosixPath(asset.filename).parts:
            raise InvalidArgument(
                f"'{folder}' names the asset '{asset.filename}', which is outside the model's folder; save"
                " the model again with its assets"
            )
    served: set[str] = set()
    started: set[str] = set()
    for name, signature in meta.signature_def.items():
        tensors = {info.name for info in signature.outputs.values()}
        (started if name == _INIT_SIGNATURE else served).update(tensors)
    for name in _INIT_COLLECTIONS:
        started.update(meta.collection_def[name].node_list.value if name in meta.collection_def else ())
    graph.check(served, allowed={}, given=frozenset())
    graph.check(started, allowed=_TABLES, given=assets)
    saver = meta.saver_def
    graph.check(
        {saver.restore_op_name} if saver.restore_op_name else set(),
        allowed=_RESTORES,
        given=frozenset({saver.filename_tensor_name}),
    )
    return graph.unbounded


class _Graph:
    """A graph and its function library. A tensor's name is "node:index", with the index of the output."""

    def __init__(self, folder: Path, graph_def: Any) -> None:
        self._folder = folder
        self._nodes = {node.name: node for node in graph_def.node}
        self._functions = {function.signature.name: function for function in graph_def.library.function}
        self._implementations: dict[bytes, list[str]] = {}
        for name, function in self._functions.items():
            if key := function.attr["api_implements"].s:
                self._implementations.setdefault(key, []).append(name)
        #: The findings of `check` so far: the functions that each function calls, and whether there are
        #: loops, and operations that XLA compiles.
        self._calls: dict[str, set[str]] = {}
        self._loops = self._compiles = False

    @property
    def unbounded(self) -> str:
        """The reason why a run of the checked nodes may take any length of time: LOOPS, COMPILES, or ""."""
        if self._loops or _is_recursive(self._calls):
            return LOOPS
        return COMPILES if self._compiles else ""

    def check(self, roots: set[str], *, allowed: Mapping[str, int], given: _Names) -> None:
        """Raises InvalidArgument if a node that `roots` depend on is a forbidden operation.

        An operation in `allowed` may run if its file name is one of the tensors `given`, which TensorFlow
        sets to the names of files of the model.
        """
        todo = [(self._nodes, frozenset(map(_node, roots)), frozenset(map(_node, given)), "")]
        seen: set[tuple[str, _Names]] = set()
        while todo:
            nodes, wanted, known, where = todo.pop()
            for node in _needed(nodes, wanted):
                if _is_forbidden(node) and not (
                    node.op in allowed and self._is_given(nodes, _input(node, allowed[node.op]), known)
                ):
                    raise self._error(node, where, reads=node.op in allowed)
                self._loops = self._loops or node.op in _LOOPS
                self._compiles = self._compiles or _is_compiled(node)
                handed = [self._is_given(nodes, tensor, known) for tensor in node.input]
                for name in self._functions_of(node):
                    self._calls.setdefault(where, set()).add(name)
                    function = self._functions[name]
                    inner: _Names = frozenset()
                    if node.op in _CALLS or node.op == name:
                        arguments = [argument.name for argument in function.signature.input_arg]
                        inner = frozenset(
                            arg for arg, is_given in zip(arguments, handed, strict=False) if is_given
                        )
                    if (name, inner) not in seen:
                        seen.add((name, inner))
                        body = {inside.name: inside for inside in function.node_def}
                        # Check the whole body: stateful operations run even if their results are unused.
                        todo.append((body, frozenset(body), inner, name))

    def _functions_of(self, node: Any) -> Iterator[str]:
        """Yields the functions that a node calls, or that optimisers may substitute (`api_implements`)."""
        for name in (node.op, *_called(node)):
            if name in self._functions:
                yield name
                key = self._functions[name].attr["api_implements"].s
                yield from (other for other in self._implementations.get(key, ()) if other != name)

    def _is_given(self, nodes: Mapping[str, Any], tensor: str, given: _Names) -> bool:
        """Returns whether a tensor always has the value of one of `given`, perhaps through a variable."""
        for _ in range(len(nodes) + 1):
            name = _node(tensor)
            if name in given:
                return True
            node = nodes.get(name)
            if node is None or not node.input:
                return False
            if node.op == "ReadVariableOp" and nodes is self._nodes:
                return self._holds_given(_node(node.input[0]), given)
            if node.op != "Identity":
                return False
            tensor = node.input[0]
        return False

    def _holds_given(self, handle: str, given: _Names) -> bool:
        """Returns whether a variable is assigned only tensors of `given`, and has no other handle or use."""
        node = self._nodes.get(handle)
        if node is None or node.op != "VarHandleOp":
            return False
        bodies = (function.node_def for function in self._functions.values())
        everywhere = (other for body in (self._nodes.values(), *bodies) for other in body)
        variables = [_variable(other) for other in everywhere if other.op == "VarHandleOp"]
        if variables.count(_variable(node)) != 1:
            return False
        users = [other for other in self._nodes.values() if handle in map(_node, other.input)]
        return all(
            user.op in ("ReadVariableOp", "VarIsInitializedOp")
            or (user.op == "AssignVariableOp" and _node(user.input[1]) in given)
            for user in users
        )

    def _error(self, node: Any, where: str, *, reads: bool) -> InvalidArgument:
        place = f" in function '{where}'" if where else ""
        what = (
            "of a file that is not the model's own"
            if reads
            else "which accesses files, the network or Python"
        )
        return InvalidArgument(
            f"'{self._folder}' cannot be served: node '{node.name}'{place} is a {node.op} {what}; export the"
            " model without it, and let the client send the data instead"
        )


def _needed(nodes: Mapping[str, Any], wanted: _Names) -> Iterator[Any]:
    todo, seen = [*wanted], set(wanted)
    while todo:
        node = nodes.get(todo.pop())
        if node is None:  # the tensor is an argument of the function
            continue
        yield node
        for name in map(_node, node.input):
            if name not in seen:
                seen.add(name)
                todo.append(name)


def _variable(node: Any) -> str:
    return node.attr["shared_name"].s.decode(errors="replace") or str(node.name)


def _input(node: Any, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _is_forbidden(node: Any) -> bool:
    if node.op == "PrintV2":
        return node.attr["output_stream"].s.decode(errors="replace") not in _LOGS
    if node.op in ("DecodeProtoV2", "EncodeProto"):
        source = node.attr["descriptor_source"].s
        return source not in (b"", b"local://") and not source.startswith(b"bytes://")
    return _FORBIDDEN.fullmatch(node.op) is not None


def _is_compiled(node: Any) -> bool:
    # Reading an attribute that is missing would add it to the node.
    return node.op in _COMPILED or (_MUST_COMPILE in node.attr and bool(node.attr[_MUST_COMPILE].b))


def _is_recursive(calls: Mapping[str, set[str]]) -> bool:
    """Returns whether a function may call itself, directly or through other functions."""
    try:
        TopologicalSorter(calls).prepare()
    except CycleError:
        return True
    return False


def _called(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield from _function_names(value.func)
        for function in value.list.func:
            yield from _function_names(function)


def _function_names(function: Any) -> Iterator[str]:
    yield function.name
    for value in function.attr.values():
        if value.HasField("func"):
            yield from _function_names(value.func)


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
