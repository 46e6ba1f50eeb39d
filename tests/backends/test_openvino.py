"""The OpenVINO backend: its own format and others, without telemetry."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backends.loading import imports_of, lane_of, load
from backends.served_models import need
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from support.networks import FLOAT, build, floats, looping, node

need("openvino")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    nodes = [node("MatMul", ["X", "W"], ["hidden"]), node("Tanh", ["hidden"], ["Y"])]
    return build(
        tmp_path / "net.onnx", nodes, [("X", FLOAT, ["N", 4])], [("Y", FLOAT, ["N", 3])], {"W": floats(4, 3)}
    )


@pytest.fixture
def file(onnx_file: Path) -> Path:
    import openvino

    openvino.save_model(
        openvino.convert_model(onnx_file), onnx_file.with_name("model.xml"), compress_to_fp16=False
    )
    return onnx_file.with_name("model.xml")


def test_an_ir_file_says_its_inputs_and_outputs_and_runs(file: Path) -> None:
    model = load(file)

    (answer,) = model.run({"X": floats(2, 4, seed=1)}, ["Y"])

    assert model.signature.inputs == (TensorSpec("X", DataType.FP32, (-1, 4)),)
    assert model.signature.outputs == (TensorSpec("Y", DataType.FP32, (-1, 3)),)
    np.testing.assert_allclose(answer, np.tanh(floats(2, 4, seed=1) @ floats(4, 3)), atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what a process maps in /proc")
def test_no_file_of_a_loaded_model_is_mapped(file: Path) -> None:
    model = load(file)

    assert str(file.parent) not in Path("/proc/self/maps").read_text()
    model.close()


def test_concurrent_runs_keep_their_own_results(file: Path) -> None:
    model = load(file)
    rows = floats(64, 4, seed=2)

    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda index: model.run({"X": rows[index : index + 1]}, ["Y"])[0], range(64))
        )

    np.testing.assert_allclose(np.concatenate(answers), model.run({"X": rows}, ["Y"])[0], atol=1e-6)


def test_an_input_with_any_number_of_dimensions_is_refused_by_name(tmp_path: Path) -> None:
    import openvino

    net = build(
        tmp_path / "net.onnx", [node("Relu", ["X"], ["Y"])], [("X", FLOAT, None)], [("Y", FLOAT, None)]
    )
    openvino.save_model(openvino.convert_model(net), tmp_path / "model.xml")

    with pytest.raises(
        InvalidArgument, match=r"model.xml' cannot be served: input 'X' has no fixed number of dimensions"
    ):
        load(tmp_path / "model.xml")


def test_missing_weights_are_reported(file: Path) -> None:
    file.with_suffix(".bin").unlink()

    with pytest.raises(InvalidArgument, match=r"needs its weights next to it: '.*model.bin' does not exist"):
        load(file)


def test_xml_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<html></html>")
    (tmp_path / "model.bin").write_bytes(b"")

    with pytest.raises(InvalidArgument, match=r"model.xml' cannot be loaded by OpenVINO 20"):
        load(tmp_path / "model.xml")


def test_shapes_that_do_not_fit_are_the_clients_fault(file: Path) -> None:
    with pytest.raises(InvalidArgument, match="model 'm' refuses the input"):
        load(file).run({"X": np.zeros((2, 5), np.float32)}, ["Y"])


def test_an_unknown_property_is_reported_with_the_nearest(file: Path) -> None:
    (warning,) = load(file, parameters={"NUM_STREAM": "2"}).warnings

    assert "parameter 'NUM_STREAM' of model 'm' is not known to the openvino backend" in warning
    assert "did you mean 'NUM_STREAMS'?" in warning


def test_a_run_uses_the_configured_cores(file: Path) -> None:
    assert load(file).threads_per_run == 1
    assert load(file, parameters={"INFERENCE_NUM_THREADS": "2"}).threads_per_run == 2


@pytest.mark.parametrize("before", ["", imports_of("openvino")], ids=["load", "trial"])
def test_telemetry_is_not_loaded(onnx_file: Path, before: str) -> None:
    program = (
        f"{before}"
        "import sys\nfrom pathlib import Path\n"
        "from backline.plugins.runtimes.openvino.runtime import OpenVino\n"
        "from backline.engine.config.model_config import ModelConfig\n"
        "OpenVino().load(Path(sys.argv[1]), ModelConfig('m'))\n"
        "print([name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and"
        " module])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(onnx_file)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout == "[]\n"


@pytest.mark.parametrize("within", ["the graph", "a branch"])
def test_a_loop_does_not_run_on_the_event_loop(tmp_path: Path, within: str) -> None:
    import openvino

    file = tmp_path / "model.xml"
    looping(tmp_path / "net.onnx", (1,), in_branch=within == "a branch")
    openvino.save_model(openvino.convert_model(tmp_path / "net.onnx"), file, compress_to_fp16=False)
    inputs = {"X": np.float32([2]), "ROUNDS": np.int64([3])}

    assert load(file).run(inputs, ["Y"])[0] == -2
    lane, warnings = lane_of(file)
    assert lane == "thread"
    assert "lane inline has no effect, and the model runs on threads: the model has a loop" in warnings


def test_a_network_without_a_loop_may_run_on_the_event_loop(file: Path) -> None:
    assert lane_of(file) == ("inline", "")
