"""`backline.serve` serves objects of the running program in the background."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backline
from backline.wire.listener import Listeners
from backline_client.values.errors import AlreadyExists, BacklineError, InvalidArgument, Unsupported
from support import models
from support.chromium import chromium
from support.web import WebServer

calls: list[float] = []


def doubled(x: float, times: int = 1) -> float:
    """A function that changes the program's state."""
    calls.append(x)
    return x * 2**times


def test_a_function_runs_in_the_program_that_serves_it() -> None:
    calls.clear()

    with backline.serve(doubled) as server:
        assert server.model is not None
        first, second = server.model(x=3.0), server.model(x=3.0, times=2)
        shown = server._repr_html_()
        connected = backline.connect(server.url)["doubled"](x=1.0)

    assert [first["output"].tolist(), second["output"].tolist()] == [[6.0], [12.0]]
    assert connected["output"].tolist() == [2.0]
    assert calls == [3.0, 3.0, 1.0]
    assert f"<a href='{server.url}'" in shown
    assert "<code>times</code>" in shown


def test_a_closure_and_a_coroutine_and_a_stream_are_served() -> None:
    offset = 10

    async def shifted(x: int) -> int:
        return x + offset

    async def counted(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    def counted_down(start: int) -> Iterator[int]:
        yield from range(start, 0, -1)

    with backline.serve(shifted) as one, backline.serve(counted) as two, backline.serve(counted_down) as down:
        assert one.model is not None
        assert two.model is not None
        assert down.model is not None
        assert one.model(x=1)["output"].tolist() == [11]
        assert [int(each["output"][0]) for each in two.model.stream(to=3)] == [0, 1, 2]
        assert [int(each["output"][0]) for each in down.model.stream(start=2)] == [2, 1]


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def predict(self, x: float) -> float:
        return self.factor * x


def test_an_object_with_a_method_predict_is_served_in_its_current_state() -> None:
    scaler = Scaler(3.0)

    with backline.serve(scaler, "scaled") as server:
        assert server.model is not None
        before = server.model(x=2.0)["output"].tolist()
        scaler.factor = 5.0
        after = server.model(x=2.0)["output"].tolist()

    assert (before, after) == ([6.0], [10.0])


def test_a_repository_is_served(tmp_path: Path) -> None:
    models.add1(tmp_path)

    with backline.serve(tmp_path) as server:
        assert server.model is None
        answer = server.client["add1"](np.zeros((1, 16), np.float32))

    np.testing.assert_array_equal(answer["OUTPUT0"], np.ones((1, 16), np.float32))
    assert repr(server) == f"<stopped server of {server.url}>"


def test_a_fitted_estimator_is_served(caplog: pytest.LogCaptureFixture) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [0.1, 0.9], [0.9, 0.2]])
    estimator = linear_model.LogisticRegression().fit(rows, [0, 1, 0, 1])

    with backline.serve(estimator) as server:
        assert server.model is not None
        answer = server.model(rows)

    assert answer["predict"].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(answer["predict_proba"], estimator.predict_proba(rows))


def test_a_torch_module_is_served_with_any_batch_size() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh())

    with backline.serve(module, "network", example=torch.zeros(1, 4)) as server:
        assert server.model is not None
        for rows in (1, 3):
            given = np.random.default_rng(rows).random((rows, 4), np.float32)
            (answer,) = dict(server.model(given)).values()
            np.testing.assert_allclose(answer, module(torch.from_numpy(given)).detach().numpy(), atol=1e-6)
    with pytest.raises(InvalidArgument, match="pass an example"):
        backline.serve(module)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (5, "an object of type int cannot be served"),
        (lambda x: x, "no type hint for its result"),
        (print, "cannot be served"),
        (Scaler, "Scaler is a class: serve an instance of it"),
    ],
    ids=["number", "lambda", "builtin", "class"],
)
def test_other_objects_are_refused_with_what_is_possible(model: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        backline.serve(model)


def test_an_array_hint_without_a_datatype_is_refused_with_the_one_to_write() -> None:
    def grown(x: np.ndarray) -> np.ndarray:
        return x

    with pytest.raises(InvalidArgument) as caught:
        backline.serve(grown)

    assert caught.value.message.startswith(
        "'grown' cannot be served: grown: the type hint of 'x' is numpy.ndarray"
    )
    assert "write FP32[16]" in caught.value.message


def test_an_estimator_must_be_fitted() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    pipeline = pytest.importorskip("sklearn.pipeline")
    estimator = linear_model.LogisticRegression()

    for unfitted in (estimator, pipeline.make_pipeline(estimator)):
        with pytest.raises(InvalidArgument, match="is not fitted: call its fit method"):
            backline.serve(unfitted)


def test_an_estimator_fitted_with_named_columns_takes_them_without_warnings() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    pipeline = pytest.importorskip("sklearn.pipeline")
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame({"a": [0.0, 1.0, 0.1, 0.9], "b": [1.0, 0.0, 0.9, 0.2]})
    made = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    made.fit(rows, [0, 1, 0, 1])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with backline.serve(made) as server:
            assert server.model is not None
            assert server.model(**rows)["predict"].tolist() == [0, 1, 0, 1]
    # Garbage of other tests may be collected meanwhile, and warns of what it left open.
    assert [str(one.message) for one in caught if one.category is not ResourceWarning] == []
    assert list(made.feature_names_in_) == ["a", "b"]


def test_an_example_that_the_module_does_not_take_is_named_as_the_fault() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(4, 2)

    with pytest.raises(InvalidArgument, match="the module fails with this example"):
        backline.serve(module, example=torch.zeros(1, 7))
    with pytest.raises(InvalidArgument, match="an object of type list: pass a tensor"):
        backline.serve(module, example=[0.0, 1.0])


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with (
        backline.serve(doubled) as server,
        pytest.raises(AlreadyExists, match="stop the server that uses this port"),
    ):
        backline.serve(doubled, port=int(server.url.rpartition(":")[2]))


def test_a_port_without_the_right_to_it_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*arguments: object, **options: object) -> int:
        raise PermissionError(errno.EACCES, "cannot listen on 127.0.0.1:80: Permission denied")

    monkeypatch.setattr(Listeners, "open_tcp", refused)
    with pytest.raises(
        InvalidArgument, match=r"127\.0\.0\.1:80: Permission denied: choose a port above 1023"
    ):
        backline.serve(doubled, port=80)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 70, "a..b"])
def test_an_address_of_another_machine_is_named_with_what_to_do(host: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"cannot listen on {host}:0: .*: choose an address of this"):
        backline.serve(doubled, host=host)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_no_machine_has_is_refused(port: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"port is {port}: expected 0 \(any free port\) to 65535"):
        backline.serve(doubled, port=port)


def test_a_name_that_no_model_can_have_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the name of the model"):
        backline.serve(doubled, "a/b")


def test_a_stream_that_is_called_like_a_function_says_how_to_call_it() -> None:
    def counted(to: int) -> Iterator[int]:
        yield from range(to)

    with backline.serve(counted) as server:
        assert server.model is not None
        with pytest.raises(Unsupported, match=r"call stream\(\.\.\.\) instead"):
            server.model(to=3)


def test_completion_offers_the_public_names_before_they_are_used() -> None:
    program = "import backline; print(dir(backline))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert "'serve'" in shown
    assert "TYPE_CHECKING" not in shown


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.py").write_text("raise RuntimeError('no')\n")

    def unknown(x: object) -> float:
        return 0.0

    with pytest.raises(BacklineError, match="unknown"):
        backline.serve(unknown)

    assert not [thread for thread in threading.enumerate() if thread.name == "backline-server"]


def test_a_notebook_shows_the_address_and_calls_the_model() -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from nbformat.v4 import new_code_cell, new_notebook

    cells = (
        "import backline\ndef add(x: float, y: float = 1.0) -> float:\n    return x + y",
        "server = backline.serve(add)\nserver",
        "float(server.model(x=2.0)['output'][0])",
        "server.stop()",
    )
    notebook = new_notebook(cells=[new_code_cell(text) for text in cells])

    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()

    shown = notebook.cells[1].outputs[0].data["text/html"]
    assert "Serving at <a href='http://127.0.0.1:" in shown
    assert "<h4>add</h4>" in shown
    assert re.search(r"<iframe src='http://127\.0\.0\.1:\d+/console\?inline#/models/add/try'", shown)
    assert notebook.cells[2].outputs[0].data["text/plain"] == "3.0"


def test_a_page_of_a_notebook_shows_the_form_and_other_pages_do_not(tmp_path: Path) -> None:
    with backline.serve(doubled) as server, chromium(tmp_path / "profile") as page:
        with WebServer() as notebook:
            shown = notebook.put("/notebook", f"<!doctype html>{server._repr_html_()}".encode())
            shown.headers["content-type"] = "text/html"
            page.open(f"{notebook.url}/notebook")
            frame = page.frame(server.url)
            frame.type("fieldset textarea", "[21]")
            frame.type("fieldset:nth-of-type(2) textarea", "[2]")  # which ticks the optional input
            frame.click("Run")
            frame.wait("document.querySelector('[data-output=output]')?.innerText.includes('84')")
            assert not frame.run("Boolean(document.querySelector('.side').offsetParent)")
        with urllib.request.urlopen(f"{server.url}/console") as answer:
            policy = answer.headers["content-security-policy"]
    assert "frame-ancestors http://localhost:* http://127.0.0.1:*" in policy


PROGRAM = """
import gc, os
import backline
from backline.model import FP32

def double(x: FP32[-1]) -> FP32[-1]:
    return x * 2

for _ in range(3):
    backline.serve(double).stop()
    gc.collect()
    print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_that_has_stopped_leaves_no_open_file() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, *later = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert later == [first, first]
