"""The PyTorch backend: no pickle is executed, names follow Triton's conventions, and misfits are reported."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import lane_of, load
from backends.served_models import need
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import TensorSpec
from support.lazy import lazy

need("torch")

torch, networks = lazy("torch"), lazy("backends.torch_networks")

X = TensorSpec("x", DataType.FP32, (-1, 4))
Y = TensorSpec("OUTPUT__0", DataType.FP32, (-1, 4))


class Payload:
    """Stands for a malicious file: unpickling it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def script(network: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(path)
    return path


def export(network: torch.nn.Module, path: Path, *examples: torch.Tensor) -> Path:
    items = torch.export.Dim("items")
    torch.export.save(
        torch.export.export(network, examples, dynamic_shapes=tuple({0: items} for _ in examples)), path
    )
    return path


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.timeout(300)  # two large frameworks
def test_an_exported_program_loads_in_a_process_with_tensorflow(tmp_path: Path) -> None:
    need("tensorflow")
    path = export(networks.Add(), tmp_path / "model.pt2", torch.zeros(2, 4), torch.zeros(2, 4))
    program = "import sys, tensorflow; from backends.loading import load; from pathlib import Path;"
    program += "load(Path(sys.argv[1])); print('loaded')"

    child = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )

    assert child.stdout == "loaded\n", child.stderr[-2000:]


def test_an_exported_program_says_its_inputs_and_outputs_itself(tmp_path: Path) -> None:
    model = load(export(networks.Parts(), tmp_path / "model.pt2", torch.zeros(2, 4, dtype=torch.bfloat16)))

    assert model.signature.inputs == (TensorSpec("x", DataType.BF16, (-1, 4)),)
    assert model.signature.outputs == (
        TensorSpec("first", DataType.BF16, (-1, 1)),
        TensorSpec("rest", DataType.BF16, (-1, 3)),
    )
    bits = np.arange(0x3F80, 0x3F8C, dtype=np.uint16).reshape(3, 4)
    rest, first = model.run({"x": bits}, ["rest", "first"])
    np.testing.assert_array_equal(first, bits[:, :1])
    np.testing.assert_array_equal(rest, bits[:, 1:])


@pytest.mark.parametrize(
    ("network", "loops"),
    [
        (networks.Add, False),
        (networks.Repeated, True),
        (networks.Nested, True),
        (networks.ThroughInterface, True),
        (networks.Hooked, True),
    ],
)
def test_a_script_with_a_loop_does_not_run_on_the_event_loop(
    network: type[torch.nn.Module], loops: bool, tmp_path: Path
) -> None:
    inputs = (TensorSpec("a", DataType.FP32, (1,)), TensorSpec("b", DataType.FP32, (1,)))
    model = load(
        script(network(), tmp_path / "model.pt"),
        inputs=inputs,
        outputs=(TensorSpec("y", DataType.FP32, (1,)),),
    )

    assert bool(getattr(model, "unbounded", "")) is loops


def test_an_exported_program_with_a_loop_does_not_run_on_the_event_loop(tmp_path: Path) -> None:
    program = torch.export.export(networks.Counting(), (torch.tensor([2]),))
    torch.export.save(program, tmp_path / "model.pt2")

    assert load(tmp_path / "model.pt2").run({"n": np.int64([7])}, ["OUTPUT__0"])[0] == 7
    lane, warnings = lane_of(tmp_path / "model.pt2")
    assert lane == "thread"
    assert "lane inline has no effect, and the model runs on threads: the model has a loop" in warnings


@pytest.mark.parametrize(
    "names", [("x", "y"), ("INPUT__0", "INPUT__1"), ("a", "b")], ids=["arguments", "indexes", "order"]
)
@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_inputs_are_named_as_the_arguments_by_index_or_in_order(
    suffix: str, names: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        script(networks.Add(), path)
    else:
        export(networks.Add(), path, torch.zeros(2, 4), torch.zeros(2, 4))
    inputs = tuple(TensorSpec(name, DataType.FP32, (4,)) for name in names)
    model = load(path, max_batch_size=8, inputs=inputs, outputs=(TensorSpec("sum", DataType.FP32, (4,)),))
    x, y = floats(3, 4), floats(3, 4) + 1

    (answer,) = model.run({names[0]: x, names[1]: y}, ["sum"])

    np.testing.assert_allclose(answer, x + 2 * y)
    assert [spec.shape for spec in model.signature.inputs] == [(-1, 4), (-1, 4)]


def test_inputs_by_index_may_come_in_any_order(tmp_path: Path) -> None:
    inputs = (TensorSpec("INPUT__1", DataType.FP32, (-1, 4)), TensorSpec("INPUT__0", DataType.FP32, (-1, 4)))
    model = load(script(networks.Add(), tmp_path / "model.pt"), inputs=inputs, outputs=(Y,))

    (answer,) = model.run({"INPUT__0": floats(1, 4), "INPUT__1": np.zeros((1, 4), np.float32)}, ["OUTPUT__0"])

    np.testing.assert_array_equal(answer, floats(1, 4))


def test_numbers_and_strings_become_arguments_of_those_types(tmp_path: Path) -> None:
    inputs = (X, TensorSpec("factor", DataType.INT64, (1,)), TensorSpec("words", DataType.BYTES, (-1,)))
    outputs = (Y, TensorSpec("OUTPUT__1", DataType.BYTES, (-1,)))
    model = load(script(networks.Scaled(), tmp_path / "model.pt"), inputs=inputs, outputs=outputs)

    scaled, words = model.run(
        {"x": floats(2, 4), "factor": np.array([3]), "words": np.array([b"a", "ü".encode()], object)},
        ["OUTPUT__0", "OUTPUT__1"],
    )

    np.testing.assert_allclose(scaled, floats(2, 4) * 3)
    assert words.tolist() == [b"a!", "ü!".encode()]


def test_a_model_of_texts_that_cannot_be_guessed_is_loaded(tmp_path: Path) -> None:
    signature: dict[str, object] = {
        "inputs": (TensorSpec("texts", DataType.BYTES, (1,)),),
        "outputs": (TensorSpec("OUTPUT__0", DataType.FP32, (1,)),),
    }
    lane, _ = lane_of(script(networks.Length(), tmp_path / "model.pt"), max_batch_size=0, **signature)

    assert lane == "thread"  # nothing is known about the time of its runs


def test_outputs_of_a_dict_are_found_by_their_keys(tmp_path: Path) -> None:
    outputs = (TensorSpec("rest", DataType.FP32, (-1, 3)), TensorSpec("first", DataType.FP32, (-1, 1)))
    model = load(script(networks.Parts(), tmp_path / "model.pt"), inputs=(X,), outputs=outputs)

    rest, first = model.run({"x": floats(2, 4)}, ["rest", "first"])

    np.testing.assert_array_equal(rest, floats(2, 4)[:, 1:])
    np.testing.assert_array_equal(first, floats(2, 4)[:, :1])


def test_a_network_that_overwrites_its_input_does_not_overwrite_the_request(tmp_path: Path) -> None:
    model = load(script(networks.Overwriting(), tmp_path / "model.pt"), inputs=(X,), outputs=(Y,))
    received = np.frombuffer(floats(2, 4).tobytes(), np.float32).reshape(2, 4)

    (answer,) = model.run({"x": received}, ["OUTPUT__0"])

    np.testing.assert_allclose(answer, floats(2, 4) * 2)
    np.testing.assert_array_equal(received, floats(2, 4))


def test_a_script_without_forward_is_refused(tmp_path: Path) -> None:
    class Other(torch.nn.Module):
        @torch.jit.export
        def double(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    with pytest.raises(InvalidArgument, match="has no method forward"):
        load(script(Other(), tmp_path / "model.pt"), inputs=(X,), outputs=(Y,))


def test_a_script_without_a_configuration_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r'is TorchScript, which does not contain .* input \[ \{ name: "x" .*\{ name: "y" .* output \[',
    ):
        load(script(networks.Add(), tmp_path / "model.pt"))


def test_names_that_do_not_fit_the_arguments_are_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"config.pbtxt names the inputs 'x', but '.*model.pt' takes 'x', 'y'; use these names",
    ):
        load(script(networks.Add(), tmp_path / "model.pt"), inputs=(X,), outputs=(Y,))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_a_checkpoint_is_refused_and_not_executed(legacy: bool, tmp_path: Path) -> None:
    torch.save(
        {"model": Payload(tmp_path / "executed")},
        tmp_path / "model.pt",
        _use_new_zipfile_serialization=not legacy,
    )

    with pytest.raises(InvalidArgument, match=r"is a checkpoint, not a model.*torch\.export\.save"):
        load(tmp_path / "model.pt", trust_pickle=True)
    assert not (tmp_path / "executed").exists()


def _replaced(source: Path, target: Path, part: str, content: bytes) -> None:
    """Copies an archive, replacing the content of files whose names contain `part`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if part in name else old.read(name))


def test_a_pickle_inside_an_exported_program_is_not_executed(tmp_path: Path) -> None:
    good = export(networks.Add(), tmp_path / "good.pt2", torch.zeros(2, 4), torch.zeros(2, 4))
    torch.save((Payload(tmp_path / "executed"),), tmp_path / "payload")
    _replaced(good, tmp_path / "model.pt2", "sample_inputs", (tmp_path / "payload").read_bytes())

    with pytest.raises(InvalidArgument, match=r"model.pt2' cannot be loaded by PyTorch"):
        load(tmp_path / "model.pt2")
    assert not (tmp_path / "executed").exists()


def test_an_exported_program_with_pickled_objects_is_refused_with_their_name(tmp_path: Path) -> None:
    good = export(networks.Add(), tmp_path / "good.pt2", torch.zeros(2, 4), torch.zeros(2, 4))
    bad = tmp_path / "model.pt2"
    bad.write_bytes(good.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("good/data/constants/opaque_obj_0", pickle.dumps(Payload(tmp_path / "executed")))

    with pytest.raises(InvalidArgument, match=r"can be restored only by executing a pickle .*opaque_obj_0"):
        load(bad)
    assert not (tmp_path / "executed").exists()


def test_a_broken_archive_asks_whether_it_was_copied_completely(tmp_path: Path) -> None:
    path = script(networks.Add(), tmp_path / "whole.pt")
    (tmp_path / "model.pt").write_bytes(path.read_bytes()[:500])

    with pytest.raises(InvalidArgument, match=r"is a broken archive .* was it copied completely"):
        load(tmp_path / "model.pt")


def test_shapes_outside_of_those_exported_are_refused_as_the_clients_fault(tmp_path: Path) -> None:
    torch.export.save(
        torch.export.export(networks.Overwriting(), (torch.zeros(2, 4),)), tmp_path / "model.pt2"
    )

    with pytest.raises(InvalidArgument, match="model 'm' refuses the input"):
        load(tmp_path / "model.pt2").run({"x": floats(3, 4)}, ["OUTPUT__0"])


def test_an_output_of_another_datatype_than_configured_is_reported(tmp_path: Path) -> None:
    model = load(
        script(networks.Overwriting(), tmp_path / "model.pt"),
        inputs=(X,),
        outputs=(TensorSpec("OUTPUT__0", DataType.INT64, (-1, 4)),),
    )

    with pytest.raises(
        Internal, match="output 'OUTPUT__0' of model 'm' is TYPE_FP32, but its configuration says TYPE_INT64"
    ):
        model.run({"x": floats(1, 4)}, ["OUTPUT__0"])


def test_machine_code_needs_trust(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", b"\x7fELF")

    with pytest.raises(
        InvalidArgument,
        match=r"is an AOTInductor package, whose machine code can do anything.*--trust-pickle",
    ):
        load(tmp_path / "model.pt2")


@pytest.mark.timeout(300)
def test_a_trusted_package_of_machine_code_answers_as_the_network(tmp_path: Path) -> None:
    items = torch.export.Dim("items", min=1, max=64)
    exported = torch.export.export(
        networks.Add(), (torch.zeros(2, 4), torch.zeros(2, 4)), dynamic_shapes=({0: items}, {0: items})
    )
    torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    inputs = tuple(TensorSpec(f"INPUT__{index}", DataType.FP32, (4,)) for index in range(2))
    model = load(
        tmp_path / "model.pt2",
        trust_pickle=True,
        max_batch_size=8,
        inputs=inputs,
        outputs=(TensorSpec("OUTPUT__0", DataType.FP32, (4,)),),
    )

    (answer,) = model.run({"INPUT__0": floats(3, 4), "INPUT__1": floats(3, 4)}, ["OUTPUT__0"])

    np.testing.assert_allclose(answer, 3 * floats(3, 4), rtol=1e-6)
    assert "is machine code that is trusted" in model.warnings[0]


def test_one_run_takes_one_core_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    path = script(networks.Add(), tmp_path / "model.pt")
    names = (X, TensorSpec("y", DataType.FP32, (-1, 4)))

    assert (
        load(path, inputs=names, outputs=(Y,), parameters={"INTRA_OP_THREAD_COUNT": "2"}).threads_per_run == 2
    )
    assert load(path, inputs=names, outputs=(Y,)).threads_per_run == 1


def test_python_in_symbolic_sizes_runs_only_if_trusted(tmp_path: Path) -> None:
    path, proof = tmp_path / "model.pt2", tmp_path / "executed"
    size = torch.export.Dim("size")
    torch.export.save(
        torch.export.export(networks.Overwriting(), (torch.zeros(3),), dynamic_shapes=({0: size},)), path
    )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    evil = f'"expr_str": "[2, open({str(proof)!r}, \'w\')][0]"'
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(
                name,
                re.sub(r'"expr_str": "[^"]*"', evil, content.decode())
                if name.endswith("models/model.json")
                else content,
            )

    with pytest.raises(InvalidArgument, match="came from a remote repository or with a load request"):
        load(path, may_run_code=False)

    assert not proof.exists()
