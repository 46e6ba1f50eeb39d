"""Models that would read or write files, made with the real runtimes: they are refused, and no file is read or written."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as tritonclient

from backends.loading import load
from backends.served_models import need
from backline.engine.errors import BacklineError, InvalidArgument
from support.server import serve

need("torch", "tensorflow", "jax", "onnx")

# Before TensorFlow and JAX: torch's compiler, which torch.export imports in other tests of this process, aborts when its
# LLVM is loaded after theirs.
import torch._dynamo  # noqa: E402, I001

import jax  # noqa: E402
import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

CONFIG = {
    "backend": "pytorch",
    "max_batch_size": 0,
    "input": [{"name": "INPUT__0", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUTPUT__0", "data_type": "TYPE_FP32", "dims": [-1]}],
}


class Reading(torch.nn.Module):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file(self.path, True, 4, dtype=torch.uint8).to(torch.float32)


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script(module: torch.nn.Module, path: Path, replace: dict[str, str] | None = None) -> Path:
    """The module's script, with text of its source replaced: what an attacker writes, and torch.jit.script does not."""
    torch.jit.script(module).save(str(path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            for old, new in (replace or {}).items():
                if name.endswith(".py"):
                    assert old in content.decode()
                    content = content.replace(old.encode(), new.encode())
            archive.writestr(name, content)
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"key!")
    return path


def test_a_script_that_reads_a_file_is_refused_even_where_it_is_trusted(tmp_path: Path, secret: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"names torch\.from_file, which reads or writes files"):
        load(script(Reading(secret), tmp_path / "model.pt"))


@pytest.mark.parametrize(
    "spelling",
    [
        'torch.save(x, "{out}")',
        'torch . save(x, "{out}")',
        'ops.aten.save(x, "{out}")',
        'x.save("{out}")',
        'getattr(torch, "save")(x, "{out}")',
        'getattr(torch, "s\\141ve")(x, "{out}")',
        'getattr(torch, "sa" "ve")(x, "{out}")',
    ],
)
@pytest.mark.parametrize("method", ["forward", "__setstate__"])
def test_no_spelling_of_save_writes_a_file(tmp_path: Path, spelling: str, method: str) -> None:
    out = tmp_path / "written"
    call = spelling.format(out=out)
    before = "    return x\n"
    after = f"    _0 = {call}\n    return x\n" if method == "forward" else before
    extra = (
        ""
        if method == "forward"
        else f"  def __setstate__(self: __torch__.Plain,\n    x: Tensor) -> None:\n    _0 = {call}\n"
    )
    path = script(Plain(), tmp_path / "model.pt", {before: after + extra})

    with pytest.raises(BacklineError, match=r"names torch\.save, which reads or writes files"):
        load(path, inputs=(), outputs=())

    assert not out.exists()


def test_the_word_save_in_a_text_or_a_definition_is_no_call(tmp_path: Path) -> None:
    from backline.backends.pytorch_files import check_source

    class Words(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "save from_file"

    check_source(script(Words(), tmp_path / "model.pt"))


def test_a_script_of_a_load_request_needs_trust_and_touches_no_file(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "models").mkdir()
    content = script(Plain(), tmp_path / "model.pt").read_bytes()
    with (
        serve(tmp_path / "models", tmp_path / "log", "--model-control-mode", "explicit") as server,
        tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client,
        pytest.raises(Exception, match=r"comes from elsewhere .* --trust-remote-code"),
    ):
        client.load_model("evil", config=json.dumps(CONFIG), files={"file:1/model.pt": content})


@pytest.mark.parametrize("filename", ["model.pt", "model.pt2"])
def test_programs_of_pytorch_from_elsewhere_are_not_even_opened(tmp_path: Path, filename: str) -> None:
    (tmp_path / filename).write_bytes(b"PK")

    with pytest.raises(InvalidArgument, match="--trust-remote-code"):
        load(tmp_path / filename, may_run_code=False)


class Module(tf.Module):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.weight = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def reads(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.io.read_file(self.path)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def writes(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.io.write_file(self.path, "overwritten")
        return {"y": x * self.weight}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def lists(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.io.matching_files("/*")}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def prints(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.print("overwritten", output_stream=f"file://{self.path}")
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def restores(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        (value,) = tf.raw_ops.RestoreV2(
            prefix=self.path, tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32]
        )
        return {"y": value}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def saves(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.raw_ops.SaveV2(prefix=self.path, tensor_names=["w"], shape_and_slices=[""], tensors=[x])
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def calls(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.numpy_function(lambda value: value, [x], tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def nested(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.cond(tf.size(x) > 0, lambda: tf.io.read_file(self.path), lambda: tf.constant(""))}


def saved(folder: Path, method: str, path: Path) -> Path:
    module = Module(path)
    tf.saved_model.save(module, str(folder), {"serving_default": getattr(module, method)})
    return folder


@pytest.mark.parametrize(
    ("method", "operation"),
    [
        ("reads", "ReadFile"),
        ("writes", "WriteFile"),
        ("lists", "MatchingFiles"),
        ("prints", "PrintV2"),
        ("restores", "RestoreV2"),
        ("saves", "SaveV2"),
        ("calls", "(EagerPyFunc|PyFunc)"),
        ("nested", "ReadFile"),
    ],
)
def test_a_saved_model_that_reaches_files_is_refused(
    tmp_path: Path, secret: Path, method: str, operation: str
) -> None:
    folder = saved(tmp_path / "model.savedmodel", method, secret)

    with pytest.raises(InvalidArgument, match=f"is a {operation} which reaches files"):
        load(folder)

    assert secret.read_bytes() == b"key!"


def edit(folder: Path, change: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())


def constant(graph: Any, name: str, text: str) -> None:
    with tf.Graph().as_default() as own:
        tf.constant(text, name=name)
    graph.node.add().CopyFrom(own.as_graph_def().node[0])


class Table(tf.Module):
    def __init__(self, vocabulary: Path) -> None:
        super().__init__()
        self.weight = tf.Variable(2.0)
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "word")])
    def find(self, word: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"line": self.table.lookup(word), "weight": self.weight}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("piano\nforte\n")
    module = Table(tmp_path / "words.txt")
    folder = tmp_path / "model.savedmodel"
    tf.saved_model.save(module, str(folder), {"serving_default": module.find})
    return folder


def test_a_table_of_the_models_own_words_and_its_variables_are_restored(table: Path) -> None:
    lines, weight = load(table).run({"word": np.array([b"forte"], object)}, ["line", "weight"])

    assert lines.tolist() == [1]
    assert weight.tolist() == 2.0


@pytest.mark.parametrize("edited", ["assigned", "read"])
def test_a_table_of_another_file_is_refused(table: Path, secret: Path, edited: str) -> None:
    def change(meta: Any) -> None:
        constant(meta.graph_def, "elsewhere", str(secret))
        nodes = {node.name: node for node in meta.graph_def.node}
        if edited == "assigned":
            nodes["Variable/Assign"].input[1] = "elsewhere"
        else:
            nodes["StatefulPartitionedCall_1"].input[0] = "elsewhere"

    edit(table, change)

    with pytest.raises(
        InvalidArgument, match="is a InitializeTableFromTextFileV2 of a file that is not the model's own"
    ):
        load(table)


def test_variables_of_another_model_are_not_restored(table: Path, secret: Path) -> None:
    def change(meta: Any) -> None:
        constant(meta.graph_def, "elsewhere", str(secret))
        restore = next(node for node in meta.graph_def.node if node.name == meta.saver_def.restore_op_name)
        restore.input[0] = "elsewhere"

    edit(table, change)

    with pytest.raises(InvalidArgument, match="is a RestoreV2 of a file that is not the model's own"):
        load(table)


def test_an_asset_outside_of_the_folder_is_refused(table: Path) -> None:
    edit(table, lambda meta: setattr(meta.asset_file_def[0], "filename", "../../secret"))

    with pytest.raises(InvalidArgument, match=r"names the asset '../../secret', which is outside"):
        load(table)


def test_a_jax_function_that_jumps_to_an_address_is_refused(tmp_path: Path) -> None:
    target = "xla_ffi_python_cpu_callback"
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((1,), np.float32))
    exported = jax.export.export(
        jax.jit(lambda x: call(x, index=np.uint64(0))),
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(target)],
    )(jax.ShapeDtypeStruct((1,), np.float32))
    (tmp_path / "model.jax").write_bytes(exported.serialize())

    with pytest.raises(InvalidArgument, match=r"calls 'xla_\w+callback', which takes an address"):
        load(tmp_path / "model.jax")


def external(folder: Path, location: str, *, in_subgraph: bool) -> Path:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="length", value="4")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if in_subgraph:
        branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=weight)], "b", [], [y])
        nodes = [
            helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BOOL),
            helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [x], [y], [] if in_subgraph else [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("in_subgraph", [False, True])
@pytest.mark.parametrize(
    "location", ["../secret", "{secret}", "link", "a/../../secret", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_of_an_onnx_model_come_from_its_folder_alone(
    tmp_path: Path, secret: Path, location: str, in_subgraph: bool
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    path = external(folder, location.format(secret=secret), in_subgraph=in_subgraph)

    with pytest.raises(InvalidArgument, match=r"takes weights from '.*', which is outside of its folder"):
        load(path)


def test_weights_next_to_an_onnx_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(np.float32(2).tobytes())

    (y,) = load(external(tmp_path, "weights", in_subgraph=False)).run({"x": np.ones(1, np.float32)}, ["y"])

    assert y.tolist() == [3.0]
