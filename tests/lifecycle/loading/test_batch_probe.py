"""The probe decides by running a network whether its first dimension is a batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import pytest
from onnx import TensorProto

from backline.engine.config.model_config import ModelConfig, WarmUpInput, WarmUpSample
from backline.lifecycle.loading.batch_probe import BatchProbe, probe_batching
from backline.lifecycle.loading.loaded_here import measure_model
from backline.lifecycle.loading.loader import load
from backline.lifecycle.loading.trial_runs import find_trial
from backline.lifecycle.loading.warm_up import warm_up_items
from backline.lifecycle.view.view import View
from backline.plugins.runtimes.onnx.runtime import OnnxRuntime
from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature
from support.networks import FLOAT, INT64, STRING, build, floats, ints, node

X, Y = "X", "Y"


def probe(path: Path) -> BatchProbe:
    model = OnnxRuntime().load(path, ModelConfig("m"))
    return probe_batching(model, find_trial(model, batched=True))


def elementwise(path: Path) -> Path:
    return build(path, [node("Relu", [X], [Y])], [(X, FLOAT, ["N", 16])], [(Y, FLOAT, ["N", 16])])


def elementwise_of_rank_1(path: Path) -> Path:
    return build(path, [node("Neg", [X], [Y])], [(X, FLOAT, ["N"])], [(Y, FLOAT, ["N"])])


def matmul(path: Path) -> Path:
    return build(
        path,
        [node("MatMul", [X, "W"], [Y])],
        [(X, FLOAT, ["N", 64])],
        [(Y, FLOAT, ["N", 9])],
        {"W": floats(64, 9)},
    )


def two_inputs(path: Path) -> Path:
    return build(
        path,
        [node("Mul", ["A", "B"], [Y])],
        [("A", FLOAT, ["N", 4]), ("B", FLOAT, ["N", 4])],
        [(Y, FLOAT, ["N", 4])],
    )


def convolution_of_any_size(path: Path) -> Path:
    return build(
        path,
        [node("Conv", [X, "W"], ["c"], pads=[1, 1, 1, 1]), node("GlobalAveragePool", ["c"], [Y])],
        [(X, FLOAT, ["N", 3, "H", "W_"])],
        [(Y, FLOAT, ["N", 5, 1, 1])],
        {"W": floats(5, 3, 3, 3)},
    )


def convolution_over_audio(path: Path) -> Path:
    """Needs 400 samples; for fewer its output is empty."""
    return build(
        path,
        [node("Unsqueeze", [X, "axis"], ["u"]), node("Conv", ["u", "W"], [Y], strides=[160])],
        [(X, FLOAT, ["N", "T"])],
        [(Y, FLOAT, ["N", 4, "F"])],
        {"W": floats(4, 1, 400), "axis": ints(1)},
    )


def _lstm(path: Path, *, batch_first: bool, direction: str = "forward") -> Path:
    count = 2 if direction == "bidirectional" else 1
    weights = {"W": floats(count, 32, 6, seed=1), "R": floats(count, 32, 8, seed=2), "axis": ints(1)}
    first, second = ("N", "T") if batch_first else ("T", "N")
    nodes = []
    sequence = X
    if batch_first:
        nodes.append(node("Transpose", [X], ["x"], perm=[1, 0, 2]))
        sequence = "x"
    nodes.append(node("LSTM", [sequence, "W", "R"], ["y4"], hidden_size=8, direction=direction))
    nodes.append(node("Transpose", ["y4"], ["y"], perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3]))
    nodes.append(node("Identity", ["y"], [Y]))
    return build(path, nodes, [(X, FLOAT, [first, second, 6])], [(Y, FLOAT, [first, None, None, 8])], weights)


def lstm_batch_first(path: Path) -> Path:
    return _lstm(path, batch_first=True)


def lstm_time_first(path: Path) -> Path:
    return _lstm(path, batch_first=False)


def lstm_time_first_backward(path: Path) -> Path:
    return _lstm(path, batch_first=False, direction="reverse")


def cumulative_sum(path: Path) -> Path:
    return build(
        path,
        [node("CumSum", [X, "axis"], [Y])],
        [(X, FLOAT, ["N", 4])],
        [(Y, FLOAT, ["N", 4])],
        {"axis": np.array(0, np.int64)},
    )


def softmax_over_rows(path: Path) -> Path:
    return build(path, [node("Softmax", [X], [Y], axis=0)], [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def softmax_over_columns(path: Path) -> Path:
    return build(path, [node("Softmax", [X], [Y], axis=1)], [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def mean_subtracted(path: Path) -> Path:
    nodes = [node("ReduceMean", [X], ["mean"], axes=[0], keepdims=1), node("Sub", [X, "mean"], [Y])]
    return build(path, nodes, [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def scaled_by_a_rare_maximum(path: Path) -> Path:
    """Divides by the largest value of the batch, if that is above 1,000."""
    nodes = [
        node("ReduceMax", [X], ["largest"], keepdims=0),
        node("Max", ["largest", "thousand"], ["by"]),
        node("Div", [X, "by"], [Y]),
    ]
    return build(
        path, nodes, [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])], {"thousand": np.array(1000, np.float32)}
    )


def dynamically_quantised(path: Path) -> Path:
    """The scale is that of the whole batch."""
    nodes = [
        node("DynamicQuantizeLinear", [X], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], [Y]),
    ]
    return build(path, nodes, [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def random_noise(path: Path) -> Path:
    nodes = [node("RandomNormalLike", [X], ["noise"], scale=0.01), node("Add", [X, "noise"], [Y])]
    return build(path, nodes, [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def dropout_that_is_off(path: Path) -> Path:
    return build(path, [node("Dropout", [X], [Y])], [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def output_without_batch(path: Path) -> Path:
    nodes = [node("ReduceSum", [X, "axis"], [Y], keepdims=0)]
    return build(path, nodes, [(X, FLOAT, ["N", 4])], [(Y, FLOAT, [4])], {"axis": ints(0)})


def constant_output(path: Path) -> Path:
    nodes = [node("Relu", [X], [Y]), node("Identity", ["table"], ["T"])]
    return build(
        path, nodes, [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4]), ("T", FLOAT, [7])], {"table": floats(7)}
    )


def output_of_wrong_rank(path: Path) -> Path:
    """The file declares [N], but the output is [N, 4]."""
    return build(path, [node("Relu", [X], [Y])], [(X, FLOAT, ["N", "M"])], [(Y, FLOAT, None)])


def rows_for_each_step(path: Path) -> Path:
    """[N, T, 3] becomes [N*T, 3]: with one step, rows look like items."""
    return build(
        path,
        [node("Reshape", [X, "shape"], [Y])],
        [(X, FLOAT, ["N", "T", 3])],
        [(Y, FLOAT, ["M", 3])],
        {"shape": ints(-1, 3)},
    )


def squeezed(path: Path) -> Path:
    return build(path, [node("Squeeze", [X], [Y])], [(X, FLOAT, ["N", 4])], [(Y, FLOAT, None)])


def transposed(path: Path) -> Path:
    return build(path, [node("Transpose", [X], [Y])], [(X, FLOAT, ["N", "M"])], [(Y, FLOAT, ["M", "N"])])


def only_one_row(path: Path) -> Path:
    """Accepts only one item, whatever the file declares."""
    return build(
        path,
        [node("Reshape", [X, "shape"], [Y])],
        [(X, FLOAT, ["N", 4])],
        [(Y, FLOAT, ["N", 4])],
        {"shape": ints(1, 4)},
    )


def embedding(path: Path) -> Path:
    return build(
        path,
        [node("Gather", ["W", X], [Y])],
        [(X, INT64, ["N", "T"])],
        [(Y, FLOAT, ["N", "T", 3])],
        {"W": floats(1000, 3)},
    )


def embedding_of_two_words(path: Path) -> Path:
    return build(
        path,
        [node("Gather", ["W", X], [Y])],
        [(X, INT64, ["N", "T"])],
        [(Y, FLOAT, ["N", "T", 3])],
        {"W": floats(2, 3)},
    )


def strings(path: Path) -> Path:
    return build(path, [node("Identity", [X], [Y])], [(X, STRING, ["N", 2])], [(Y, STRING, ["N", 2])])


def dimension_of_nothing(path: Path) -> Path:
    return build(path, [node("Relu", [X], [Y])], [(X, FLOAT, ["N", 0])], [(Y, FLOAT, ["N", 0])])


def not_a_number(path: Path) -> Path:
    """Logarithms of negative numbers."""
    return build(path, [node("Log", [X], [Y])], [(X, FLOAT, ["N", 4])], [(Y, FLOAT, ["N", 4])])


def half_precision(path: Path) -> Path:
    weights = {"W": floats(64, 9).astype(np.float16)}
    half = TensorProto.FLOAT16
    return build(
        path, [node("MatMul", [X, "W"], [Y])], [(X, half, ["N", 64])], [(Y, half, ["N", 9])], weights
    )


def bfloat16(path: Path) -> Path:
    kind = TensorProto.BFLOAT16
    return build(path, [node("Identity", [X], [Y])], [(X, kind, ["N", 8])], [(Y, kind, ["N", 8])])


def image_bytes(path: Path) -> Path:
    nodes = [node("Cast", [X], ["f"], to=FLOAT), node("ReduceMean", ["f"], [Y], axes=[1, 2], keepdims=0)]
    return build(path, nodes, [(X, TensorProto.UINT8, ["N", "H", "W", 3])], [(Y, FLOAT, ["N", 3])])


def layer_normalisation(path: Path) -> Path:
    nodes = [node("LayerNormalization", ["h", "scale"], [Y]), node("MatMul", [X, "W"], ["h"])][::-1]
    return build(
        path,
        nodes,
        [(X, FLOAT, ["N", "T", 8])],
        [(Y, FLOAT, ["N", "T", 16])],
        {"W": floats(8, 16), "scale": floats(16, seed=3)},
    )


Net = Callable[[Path], Path]


@pytest.mark.parametrize(
    "net",
    [
        elementwise,
        elementwise_of_rank_1,
        matmul,
        two_inputs,
        convolution_of_any_size,
        convolution_over_audio,
        lstm_batch_first,
        softmax_over_columns,
        dropout_that_is_off,
        output_of_wrong_rank,
        embedding,
        embedding_of_two_words,
        strings,
        dimension_of_nothing,
        not_a_number,
        half_precision,
        bfloat16,
        image_bytes,
        layer_normalisation,
    ],
)
def test_independent_items_are_batched(net: Net, tmp_path: Path) -> None:
    found = probe(net(tmp_path / "model.onnx"))

    assert found.batched, found.reason
    assert "batch" in found.reason


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (lstm_time_first, "depends on the other items"),
        (lstm_time_first_backward, "depends on the other items"),
        (cumulative_sum, "depends on the other items"),
        (softmax_over_rows, "depends on the other items"),
        (mean_subtracted, "depends on the other items"),
        (scaled_by_a_rare_maximum, "depends on the other items"),
        (dynamically_quantised, "depends on the other items"),
        (random_noise, "changes when the same input is run again"),
        (output_without_batch, "output 'Y' has shape [4] for one item"),
        (constant_output, "output 'T' has shape [7] for one item"),
        (rows_for_each_step, "output 'Y' has shape [4, 3] for one item"),
        (squeezed, "output 'Y' has shape [4] for one item"),
        (transposed, "output 'Y' has shape [4, 1] for one item"),
        (only_one_row, "each of 3 items can be run alone, but not all together"),
    ],
)
def test_a_first_dimension_that_is_not_a_batch_is_detected(net: Net, reason: str, tmp_path: Path) -> None:
    found = probe(net(tmp_path / "model.onnx"))

    assert not found.batched
    assert reason in found.reason


def test_scalars_and_fixed_first_dimensions_are_not_batches(tmp_path: Path) -> None:
    scalar = build(
        tmp_path / "a.onnx",
        [node("Mul", [X, "S"], [Y])],
        [(X, FLOAT, ["N", 4]), ("S", FLOAT, [])],
        [(Y, FLOAT, ["N", 4])],
    )
    fixed = build(tmp_path / "b.onnx", [node("Relu", [X], [Y])], [(X, FLOAT, [3, 4])], [(Y, FLOAT, [3, 4])])

    assert probe(scalar) == BatchProbe(False, "input 'S' is a scalar, so it has no batch dimension")
    assert probe(fixed) == BatchProbe(False, "the first dimension of input 'X' is always 3")


def test_a_model_that_rejects_all_trials_is_not_batched(tmp_path: Path) -> None:
    weights = {"shape": ints(-1, 7919)}  # a row of 4 has no multiple of this prime
    net = build(
        tmp_path / "m.onnx",
        [node("Reshape", [X, "shape"], [Y])],
        [(X, FLOAT, ["N", 4])],
        [(Y, FLOAT, ["N", 7919])],
        weights,
    )

    found = probe(net)

    assert found == BatchProbe(
        False,
        "no input that was tried could be run, so it is not known whether requests can be batched: set"
        " model_warmup to inputs that the model accepts, or set max_batch_size",
        known=False,
    )


class Slowed:
    """A model whose runs take longer, as on a busy machine, and are counted."""

    threads_per_run = 1
    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, seconds: float) -> None:
        self._model = OnnxRuntime().load(path, ModelConfig("m"))
        self._seconds = seconds
        self.signature = self._model.signature
        self.runs: list[list[tuple[int, ...]]] = []

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self.runs.append([array.shape for array in inputs.values()])
        sleep(self._seconds)
        return self._model.run(inputs, outputs)

    def close(self) -> None:
        self._model.close()


def test_a_model_that_fails_for_every_input_that_is_tried_is_served_one_by_one(tmp_path: Path) -> None:
    def misshapen(size: int | str) -> Path:
        """Reshapes its input to one element more than it has, or to 1 << 40 elements."""
        nodes = [
            node("Cast", [X], ["whole"], to=INT64),
            node("ReduceMax", ["whole"], ["most"], axes=[0]),
            node("Mul", ["most", "zero"], ["none"]),
            node("Add", ["none", "wrong"], ["shape"]),
            node("Reshape", [X, "shape"], [Y]),
        ]
        constants = {"zero": ints(0), "wrong": ints(5 if size == 4 else 1 << 40)}
        return build(tmp_path / f"{size}.onnx", nodes, [(X, FLOAT, [size])], [(Y, FLOAT, ["M"])], constants)

    for size, batch in ((4, 0), ("N", 0)):
        loaded = load(misshapen(size), ModelConfig("m"))
        assert "no trial input could be run, so the run time is not known" in loaded.reason
        assert loaded.max_batch_size == batch
        loaded.close()


def test_a_model_whose_inputs_are_sizes_is_served(tmp_path: Path) -> None:
    """No trial guesses that the number of bins must be small compared with the length of the transform."""
    inputs = {"bins": 8, "dft": 16, "rate": 8192}
    nodes = [node("MelWeightMatrix", [*inputs, "low", "high"], [Y])]
    floats_between = [("low", FLOAT, []), ("high", FLOAT, [])]
    scalars = [(name, INT64, []) for name in inputs]
    path = build(tmp_path / "mel.onnx", nodes, [*scalars, *floats_between], [(Y, FLOAT, ["A", "B"])])
    given = {name: np.array(value, np.int64) for name, value in inputs.items()}
    given |= {"low": np.array(0, np.float32), "high": np.array(4096, np.float32)}

    loaded = load(path, ModelConfig("m"))

    (run,) = loaded.lone_runs()
    assert run(given, [Y])[0].shape == (9, 8)
    loaded.close()


@pytest.mark.parametrize("net", [convolution_over_audio, embedding_of_two_words, cumulative_sum, elementwise])
def test_a_busy_machine_proves_by_the_same_runs_as_an_idle_one(net: Net, tmp_path: Path) -> None:
    path = net(tmp_path / "model.onnx")
    idle, busy = Slowed(path, 0), Slowed(path, 0.06)

    on_idle = probe_batching(idle, find_trial(idle, batched=True))
    on_busy = probe_batching(busy, find_trial(busy, batched=True))

    assert on_busy == on_idle
    assert on_busy.known
    assert busy.runs == idle.runs


@pytest.mark.parametrize(("max_batch_size", "runs"), [(None, 4), (8, 3), (1, 2), (0, 2)])
def test_a_slow_model_runs_only_a_few_times_at_load(
    max_batch_size: int | None, runs: int, tmp_path: Path
) -> None:
    path = elementwise(tmp_path / "model.onnx")
    config, model = ModelConfig("m", max_batch_size=max_batch_size), Slowed(path, 0.15)

    found = measure_model(config, View(config, path), model)

    assert len(model.runs) == runs
    assert found.times.seconds[1] >= 0.15


def test_a_slow_model_with_variable_dimensions_runs_once_more(tmp_path: Path) -> None:
    path = layer_normalisation(tmp_path / "model.onnx")
    config, model = ModelConfig("m"), Slowed(path, 0.15)

    assert measure_model(config, View(config, path), model).probe.batched
    assert len(model.runs) == 5


def rows_of_four(path: Path) -> Path:
    """[N, T] becomes [-1, 4]: with four columns, which are tried first, rows look like items."""
    return build(
        path,
        [node("Reshape", [X, "shape"], [Y])],
        [(X, FLOAT, ["N", "T"])],
        [(Y, FLOAT, ["M", 4])],
        {"shape": ints(-1, 4)},
    )


def test_sizes_that_equal_a_constant_of_the_model_do_not_deceive_the_proof(tmp_path: Path) -> None:
    found = probe(rows_of_four(tmp_path / "model.onnx"))

    assert found == BatchProbe(
        False, "output 'Y' has shape [2, 4] for one item, so its first dimension is not the batch dimension"
    )


def only_long_rows(path: Path) -> Path:
    """Accepts rows of 7,919 numbers, which are not among the sizes that are made up."""
    weights = {"W": floats(7919, 3)}
    return build(
        path, [node("MatMul", [X, "W"], [Y])], [(X, FLOAT, ["N", "T"])], [(Y, FLOAT, ["N", 3])], weights
    )


@pytest.mark.parametrize(("dims", "accepted"), [((7919,), True), ((1, 7919), True), ((7918,), False)])
def test_the_users_own_warm_up_inputs_are_tried_first(
    dims: tuple[int, ...], accepted: bool, tmp_path: Path
) -> None:
    path = only_long_rows(tmp_path / "model.onnx")
    inputs = (WarmUpInput(X, DataType.FP32, dims, "random"),)
    config = ModelConfig("m", warm_up=(WarmUpSample("mine", 0, 1, inputs),))

    found = load(path, config, samples=warm_up_items(config, tmp_path))

    assert (found.max_batch_size > 0, found.measured.probe.known) == (accepted, accepted)


def test_a_configured_batch_is_believed_and_a_warning_says_what_speaks_against_it(tmp_path: Path) -> None:
    found = load(mean_subtracted(tmp_path / "model.onnx"), ModelConfig("m", max_batch_size=8))

    assert found.max_batch_size == 8
    (warning,) = found.warnings
    assert (
        "max_batch_size is 8, but joining requests changes outputs: output 'Y' of an item depends" in warning
    )


class _Counting:
    """A model with state: it adds the number of runs so far."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self._runs = 0

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self._runs += 1
        return [inputs[X] + self._runs]

    def close(self) -> None:
        pass


def test_a_model_with_a_state_is_not_batched(tmp_path: Path) -> None:
    signature = OnnxRuntime().load(elementwise(tmp_path / "model.onnx"), ModelConfig("m")).signature

    model = _Counting(signature)
    found = probe_batching(model, find_trial(model, batched=True))

    assert not found.batched
    assert "random or keeps a state" in found.reason


def test_small_models_are_probed_in_milliseconds(tmp_path: Path) -> None:
    model = OnnxRuntime().load(elementwise(tmp_path / "model.onnx"), ModelConfig("m"))
    times = []
    for _ in range(5):
        begin = perf_counter()
        probe_batching(model, find_trial(model, batched=True))
        times.append(perf_counter() - begin)

    assert min(times) < 0.03


def _packaged(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(found.submodule_search_locations[0]) / file


def test_basic_pitch_is_batched() -> None:
    assert probe(_packaged("basic_pitch", "saved_models/icassp_2022/nmp.onnx")).batched


def test_silero_vad_keeps_its_state_in_another_dimension() -> None:
    found = probe(_packaged("silero_vad", "data/silero_vad.onnx"))

    assert found == BatchProbe(False, "the first dimension of input 'state' is always 2")
