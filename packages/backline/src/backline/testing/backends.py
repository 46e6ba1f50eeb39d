"""The conformance kit for backends: the checks that the built-in backends pass.

    from backline.testing.backends import BackendConformance

    class TestToy(BackendConformance):
        plugin = toy_backend.PLUGIN

        def write_model(self, folder): ...
        def inputs(self, items): ...
        def expected(self, path, inputs): ...

pytest then finds one test for each promise that the server relies on.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import backline
from backline.backends.backend import LoadedModel, LoadOptions
from backline.backends.plugin import BACKENDS, BackendPlugin
from backline.backends.registry import choose, find_backend
from backline.doors import API_VERSION
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument

Arrays = Mapping[str, np.ndarray]


class BackendConformance:
    """The checks of a backend whose models are files that it loads in the server's process, and that answer
    each request once. Subclass it in a test module, and override the first attribute and the three methods.
    """

    plugin: ClassVar[BackendPlugin]
    #: The maximum absolute and relative difference from the expected outputs.
    tolerance: ClassVar[float] = 1e-5
    #: Content that is no model, in addition to an empty file and half of the model.
    damaged: ClassVar[bytes] = b"\x00\xff" * 300
    #: Whether half of the model's file is an error. False for a format that cannot tell.
    detects_truncation: ClassVar[bool] = True
    options: ClassVar[LoadOptions] = LoadOptions(may_run_code=True)

    def write_model(self, folder: Path) -> Path:
        """Writes a model into the folder, under a name from which the format is known, and returns its path.
        If a second model of the same kind is useless, it may return the same content each time.
        """
        raise NotImplementedError

    def inputs(self, items: int) -> dict[str, np.ndarray]:
        """Returns the inputs of a request with this batch size. Each item differs from the others."""
        raise NotImplementedError

    def expected(self, path: Path, inputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the outputs of the model in the file for these inputs, computed without Backline."""
        raise NotImplementedError

    # The checks

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True)
        return self.write_model(folder)

    @pytest.fixture
    def load(self) -> Iterator[Callable[[Path], LoadedModel]]:
        loaded: list[LoadedModel] = []

        def load(path: Path) -> LoadedModel:
            model: Any = self.plugin.backend().load(path, ModelConfig("m"), self.options)
            loaded.append(model)
            return model  # type: ignore[no-any-return]

        yield load
        for model in loaded:
            model.close()

    def close_to(self, found: Arrays, expected: Arrays) -> None:
        """Asserts that arrays are equal, except for rounding."""
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            answer = found[name]
            assert answer.shape == array.shape, f"output '{name}' has shape {answer.shape}, not {array.shape}"
            if array.dtype.kind in "OSU":
                assert answer.tolist() == array.tolist()
            else:
                np.testing.assert_allclose(answer, array, rtol=self.tolerance, atol=self.tolerance)

    def run(self, model: LoadedModel, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs the model for all outputs."""
        names = [spec.name for spec in model.signature.outputs]
        return dict(zip(names, model.run(inputs, names), strict=True))

    def test_the_record_describes_the_backend(self) -> None:
        assert self.plugin.api_version == API_VERSION or self.plugin in BACKENDS.built_in
        assert self.plugin.backend().name == self.plugin.name
        assert all(format.backend == self.plugin.name for format in self.plugin.formats)
        assert self.plugin.summary or self.plugin.page, "say what it is for"

    def test_the_server_finds_the_backend(self, path: Path) -> None:
        """By its name, and by the name of the file. Fails if the distribution is not installed."""
        found = find_backend(self.plugin.name)
        assert found is not None, "no such backend: is the distribution with its entry point installed?"
        assert found.target == self.plugin.target
        assert choose(ModelConfig("m"), path).name == self.plugin.name

    def test_the_signature_is_that_of_the_model(
        self, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        inputs = self.inputs(2)
        expected = self.expected(path, inputs)
        signature = load(path).signature
        for specs, arrays in ((signature.inputs, inputs), (signature.outputs, expected)):
            assert {spec.name for spec in specs} == set(arrays)
            for spec in specs:
                array = arrays[spec.name]
                fits = zip(spec.shape, array.shape, strict=True)
                assert all(dim in (-1, size) for dim, size in fits), f"{spec} does not fit {array.shape}"
                assert spec.datatype is DataType.BYTES or spec.datatype.dtype == array.dtype, spec

    @pytest.mark.parametrize("items", [1, 3])
    def test_a_run_gives_the_expected_outputs(
        self, items: int, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        inputs = self.inputs(items)
        self.close_to(self.run(load(path), inputs), self.expected(path, inputs))

    def test_the_outputs_come_in_the_order_in_which_they_are_asked_for(
        self, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        model, inputs = load(path), self.inputs(1)
        names = [spec.name for spec in reversed(model.signature.outputs)]
        whole = self.run(model, inputs)
        for asked in (names, names[:1]):
            answers = model.run(inputs, asked)
            self.close_to(dict(zip(asked, answers, strict=True)), {name: whole[name] for name in asked})

    def test_a_batch_gives_each_item_its_own_result(
        self, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        """Required only where the batch dimension is variable: the server then joins requests."""
        model, inputs = load(path), self.inputs(3)
        if any(spec.shape[:1] != (-1,) for spec in model.signature.inputs):
            pytest.skip("this model has no variable batch dimension")
        alone = [
            self.run(model, {name: array[item : item + 1] for name, array in inputs.items()})
            for item in range(3)
        ]
        joined = {name: np.concatenate([one[name] for one in alone]) for name in alone[0]}
        self.close_to(self.run(model, inputs), joined)

    def test_runs_on_several_threads_do_not_disturb_each_other(
        self, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        model = load(path)
        batches = [self.inputs(items) for items in (1, 3, 2, 1, 3, 2, 1, 2)]
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda inputs: self.run(model, inputs), batches))
        for inputs, answer in zip(batches, answers, strict=True):
            self.close_to(answer, self.expected(path, inputs))

    def test_a_run_leaves_its_inputs_as_they_are(
        self, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        """They may be read-only views of the received bytes."""
        inputs = self.inputs(2)
        before = {name: array.copy() for name, array in inputs.items()}
        for array in inputs.values():
            array.flags.writeable = False
        self.run(load(path), inputs)
        assert all(np.array_equal(array, before[name]) for name, array in inputs.items())

    def test_inputs_that_the_model_rejects_are_an_error_of_the_caller(
        self, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        """A runtime may take more than the signature says, which the server refuses before the run."""
        model, inputs = load(path), self.inputs(1)
        name, array = next(iter(inputs.items()))
        with suppress(InvalidArgument):
            self.run(model, {**inputs, name: np.zeros((1, 2, *array.shape, 7), array.dtype)})
        self.close_to(self.run(model, inputs), self.expected(path, inputs))

    @pytest.mark.parametrize("damage", ["empty", "half", "other"])
    def test_a_damaged_file_is_refused_by_name(
        self, damage: str, path: Path, load: Callable[[Path], LoadedModel]
    ) -> None:
        if path.is_dir() or (damage == "half" and not self.detects_truncation):
            pytest.skip("this format is a folder, or cannot tell")
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "other": self.damaged}[damage])
        with pytest.raises(InvalidArgument) as told:
            load(path)
        assert path.name in told.value.message, "name the file"

    def test_a_closed_model_is_freed(self, path: Path) -> None:
        backend = self.plugin.backend()

        def alive(kind: type) -> int:
            gc.collect()
            return sum(type(one) is kind for one in gc.get_objects())

        model: Any = backend.load(path, ModelConfig("m"), self.options)
        kind = type(model)
        self.run(model, self.inputs(1))
        before = alive(kind)
        model.close()
        del model
        assert alive(kind) < before, f"something still refers to the closed {kind.__name__}"
        assert str(path) not in _open_files(), "the file is still open or mapped"

    def test_the_model_is_served_over_http(self, path: Path) -> None:
        inputs = self.inputs(1)
        with backline.serve(path.parent.parent.parent) as server:
            entry = server.client["m"]
            assert entry.config()["backend"] == self.plugin.name
            self.close_to(dict(entry(inputs)), self.expected(path, inputs))


def _open_files() -> str:
    """Returns the names of the files that this process has open or mapped; "" where /proc does not exist."""
    if not os.path.isdir("/proc/self/fd"):
        return ""
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue  # the descriptor of this listing
    return "\n".join((*names, Path("/proc/self/maps").read_text()))
