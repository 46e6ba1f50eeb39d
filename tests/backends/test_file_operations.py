"""Models that try to read or write files, made with the real runtimes, are refused and touch no file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as tritonclient
from onnx import TensorProto, helper

from backends.loading import load
from backends.served_models import need
from backline.plugins.runtimes.pytorch.files import check_source
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.signature import TensorSpec
from support.server import serve

need("torch", "tensorflow", "jax", "onnx")

CONFIG = {
    "backend": "pytorch",
    "max_batch_size": 0,
    "input": [{"name": "INPUT__0", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUTPUT__0", "data_type": "TYPE_FP32", "dims": [-1]}],
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder with the files of a builder in hostile_files.py, run once in a child process."""
    folders: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = folder = tmp_path_factory.mktemp(kind)
            (folder / "secret").write_bytes(b"key!")
            script = Path(__file__).with_name("hostile_files.py")
            subprocess.run([sys.executable, script, kind, folder, folder / "secret"], check=True)
        return folders[kind]

    return build


@pytest.fixture(scope="module")
def scripts(hostile: Callable[[str], Path]) -> Path:
    return hostile("torch_scripts")


def edited(script: Path, path: Path, old: str, new: str) -> Path:
    """A script with its source changed: what an attacker writes, and torch.jit.script does not."""
    with zipfile.ZipFile(script) as archive, zipfile.ZipFile(path, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".py"):
                assert old in content.decode()
                content = content.replace(old.encode(), new.encode())
            copy.writestr(name, content)
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"key!")
    return path


def test_a_script_that_reads_a_file_is_refused_even_if_trusted(scripts: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"names torch\.from_file, which reads or writes files"):
        load(scripts / "reading.pt")


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
def test_no_spelling_of_save_writes_a_file(tmp_path: Path, scripts: Path, spelling: str, method: str) -> None:
    out = tmp_path / "written"
    call = spelling.format(out=out)
    before = "    return x\n"
    after = f"    _0 = {call}\n    return x\n" if method == "forward" else before
    extra = (
        ""
        if method == "forward"
        else f"  def __setstate__(self: __torch__.Plain,\n    x: Tensor) -> None:\n    _0 = {call}\n"
    )
    path = edited(scripts / "plain.pt", tmp_path / "model.pt", before, after + extra)

    with pytest.raises(BacklineError, match=r"names torch\.save, which reads or writes files"):
        load(path, inputs=(), outputs=())

    assert not out.exists()


def test_the_word_save_in_a_string_is_not_a_call(scripts: Path) -> None:
    assert not check_source(scripts / "words.pt")


def test_attributes_and_methods_named_save_are_the_users_own(scripts: Path) -> None:
    x, y = (TensorSpec(name, DataType.FP32, (-1,)) for name in ("x", "OUTPUT__0"))
    model = load(scripts / "own_names.pt", inputs=(x,), outputs=(y,))

    (answer,) = model.run({"x": np.arange(4, dtype=np.float32)}, ["OUTPUT__0"])

    np.testing.assert_array_equal(answer, np.arange(4, dtype=np.float32) * 2 + 1 + 3)


@pytest.mark.parametrize(
    ("old", "call"),
    [
        ("torch.mul(x, w)", 'torch.save(x, "{out}")'),
        ("torch.mul(x, w)", 'x.save("{out}")'),
        ("torch.mul(x, w)", 'torch.neg(x).save("{out}")'),
        ("torch.mul(x, w)", "__torch__.helper(x)"),
    ],
)
@pytest.mark.parametrize("when", ["in a run", "on load"])
def test_a_script_with_own_names_cannot_hide_an_operation(
    tmp_path: Path, scripts: Path, old: str, call: str, when: str
) -> None:
    out = tmp_path / "written"
    written = call.format(out=out)
    before = f"    return {old}\n"
    after = f"    _9 = {written}\n" + before
    helper = f'\ndef helper(x: Tensor) -> None:\n  t = torch\n  _0 = t.save(x, "{out}")\n  return None\n'
    if when == "on load":
        after = before + (
            f"  def __setstate__(self: __torch__.Child,\n    x: Tensor) -> None:\n    _9 = {written}\n"
        )
    path = edited(scripts / "own_names.pt", tmp_path / "model.pt", before, after + helper)

    with pytest.raises(BacklineError, match=r"names torch\.save|has no attribute or method 'save'"):
        load(path)

    assert not out.exists()


def test_a_script_in_a_load_request_needs_trust(tmp_path: Path, scripts: Path) -> None:
    (tmp_path / "models").mkdir()
    content = (scripts / "plain.pt").read_bytes()
    with (
        serve(tmp_path / "models", tmp_path / "log", "--model-control-mode", "explicit") as server,
        tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client,
        pytest.raises(Exception, match=r"came from a remote repository or .* --trust-remote-code"),
    ):
        client.load_model("evil", config=json.dumps(CONFIG), files={"file:1/model.pt": content})


@pytest.mark.parametrize("filename", ["model.pt", "model.pt2"])
def test_programs_of_pytorch_from_elsewhere_are_not_even_opened(tmp_path: Path, filename: str) -> None:
    (tmp_path / filename).write_bytes(b"PK")

    with pytest.raises(InvalidArgument, match="--trust-remote-code"):
        load(tmp_path / filename, may_run_code=False)


@pytest.fixture(scope="module")
def saved(hostile: Callable[[str], Path]) -> Path:
    return hostile("saved_models")


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
def test_a_saved_model_that_reaches_files_is_refused(saved: Path, method: str, operation: str) -> None:
    with pytest.raises(InvalidArgument, match=f"is a {operation} which accesses files"):
        load(saved / method)

    assert (saved / "secret").read_bytes() == b"key!"


def edit(folder: Path, change: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())


def constant(graph: Any, name: str, text: str) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as own:
        tf.constant(text, name=name)
    graph.node.add().CopyFrom(own.as_graph_def().node[0])


@pytest.fixture
def table(tmp_path: Path, saved: Path) -> Path:
    """A model with a vocabulary, which tests may edit."""
    return Path(shutil.copytree(saved / "table", tmp_path / "model.savedmodel"))


def test_a_table_of_the_models_own_words_and_its_variables_are_restored(table: Path) -> None:
    lines, weight = load(table).run({"x": np.array([b"forte"], object)}, ["y", "weight"])

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


def test_a_jax_function_that_jumps_to_an_address_is_refused(hostile: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidArgument, match=r"calls 'xla_\w+callback', a callback at a memory"):
        load(hostile("jax_function") / "model.jax")


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
