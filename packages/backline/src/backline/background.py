"""`backline.serve`: serves an object of the running program, such as a fitted estimator, in the background.

The server runs on a thread of this process. An estimator or a torch module is saved to a temporary
repository. A function or any other object is not saved; instead, the repository contains a `model.py` that
gets it from this module.
"""

from __future__ import annotations

import atexit
import errno
import html
import inspect
import itertools
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, Final
from urllib.parse import quote

from backline.lifecycle.options import LifecycleOptions
from backline.server import PortNotOpened, Server, ServerOptions
from backline_client.client.background_loop import BackgroundLoop
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelMetadata
from backline_client.client.sync import Client, Model
from backline_client.values.errors import AlreadyExists, BacklineError, InvalidArgument
from backline_client.values.names import check_name

#: Objects that are served without being saved, by key. The generated model.py files contain these keys.
_ADOPTED: Final[dict[str, Any]] = {}
_FRAME: Final = "width: 100%; height: 620px; border: 1px solid #8884; border-radius: 8px"
_NUMBERS: Final = itertools.count(1)
#: Origins of pages that may show the console in a frame: notebooks on this machine and in VS Code.
_NOTEBOOKS: Final = (
    "http://localhost:*",
    "http://127.0.0.1:*",
    "https://localhost:*",
    "https://127.0.0.1:*",
    "vscode-webview:",
)
_FUNCTION = """\
from backline.background import adopted_function

predict = adopted_function({key!r}, __name__)
"""
_INSTANCE = """\
from backline.background import adopted_class

Model = adopted_class({key!r})
"""


class RunningServer:
    """A server that runs in the background of this program.

    The server runs until `stop` is called, its `with` block ends, or the program ends. `url` is the address
    of the server, and `client` a client for it. `model` calls the model that was given to `serve`; `model` is
    None if `serve` was given a path or URL.
    """

    def __init__(self, options: ServerOptions, name: str, folder: Path | None, key: str) -> None:
        self._name = name
        self._folder = folder
        self._key = key
        self._stopped = False
        self._loop = BackgroundLoop("backline-server")
        self._server = Server(options)
        try:
            try:
                self._loop.run(self._server.start())
            except PortNotOpened as error:
                raise _not_opened(error) from error
            self.url = dict(self._server.urls)["HTTP"]
            self.client = Client(self.url, ClientOptions())
            if name:
                self._check_loaded()
        except BaseException:
            self.stop()
            raise
        atexit.register(self.stop)

    def _check_loaded(self) -> None:
        """Raises InvalidArgument with the reason if the model could not be loaded."""
        for entry in self.client.models():
            if entry.name == self._name and not entry.ready:
                reason = entry.reason.removeprefix("Internal: ")
                if self._key:  # the caller has never seen the generated file
                    reason = reason.removeprefix("model.py, ")
                raise InvalidArgument(f"'{self._name}' cannot be served: {reason}")

    @property
    def model(self) -> Model | None:
        return self.client[self._name] if self._name else None

    def stop(self) -> None:
        """Waits up to 30 s for the requests in flight to complete, closes all connections, unloads the models
        and removes the temporary repository.
        """
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        try:
            self._loop.run(self._server.stop())
        finally:
            self._loop.close()
            _ADOPTED.pop(self._key, None)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        if self._stopped:
            return f"<stopped server of {self.url}>"
        return f"<server of {self._name or 'a repository'} at {self.url}>"

    def _repr_html_(self) -> str:
        """Returns the HTML that a notebook shows: the server's address, a frame with the console's form for
        trying the model, and the inputs, outputs and Python call of each model.

        The frame stays empty if the browser cannot connect to the server's address.
        """
        if self._stopped:
            return f"<p>The server at {html.escape(self.url)} has stopped.</p>"
        names = dict.fromkeys(entry.name for entry in self.client.models() if entry.ready)
        cards = "".join(_card(self.client[name].metadata()) for name in names)
        link = html.escape(self.url, quote=True)
        page = f"models/{quote(self._name, safe='')}/try" if self._name else "models"
        return (
            f"<div><p>Serving at <a href='{link}' target='_blank' rel='noopener'>{link}</a></p>"
            f"<iframe src='{link}/console?inline#/{page}' title='Try the model' style='{_FRAME}'"
            " allow='microphone; clipboard-write'></iframe>"
            f"<details><summary>Inputs, outputs and the call in Python</summary>{cards}</details></div>"
        )


def _not_opened(error: PortNotOpened) -> BacklineError:
    if error.errno == errno.EADDRINUSE:
        return AlreadyExists(
            f"{error.strerror}: stop the server that uses this port, perhaps one that this program started"
            " earlier, or leave out `port` to use a free one"
        )
    if error.errno == errno.EACCES:
        advice = "choose a port above 1023, or leave out `port` to use a free one"
    else:
        advice = "choose an address of this machine for `host`, for example 127.0.0.1 or 0.0.0.0"
    return InvalidArgument(f"{error.strerror}: {advice}")


def _card(metadata: ModelMetadata) -> str:
    rows = "".join(
        f"<tr><td>{kind}</td><td><code>{html.escape(spec.name)}</code></td><td>{spec.datatype.name}</td>"
        f"<td>{html.escape(str(list(spec.shape)))}</td></tr>"
        for kind, specs in (("input", metadata.inputs), ("output", metadata.outputs))
        for spec in specs
    )
    arguments = ", ".join(f"{spec.name}=..." for spec in metadata.inputs)
    call = f"backline.connect(url)[{metadata.name!r}]({arguments})"
    return (
        f"<h4>{html.escape(metadata.name)}</h4><table><tr><th></th><th>name</th><th>datatype</th>"
        f"<th>shape</th></tr>{rows}</table><pre>{html.escape(call)}</pre>"
    )


def serve(
    model: Any, name: str = "", *, example: Any = None, host: str = "127.0.0.1", port: int = 0
) -> RunningServer:
    """Serves a model in the background of this program, and returns the running server.

    >>> with backline.serve(estimator) as server:
    ...     server.model(rows)

    `model` is one of:

    - a fitted estimator with scikit-learn's interface,
    - a torch module; `example` is then an example of its input, or a tuple with an example of each input,
      whose first dimension is the batch dimension,
    - a function whose parameters and result have type hints, or an object whose `predict` method has
      type hints (docs/python-models.md). The function or method runs on a thread of this program and can use
      the program's variables,
    - a path or URL of a model or a repository, as for `backline serve`.

    `name` is the model's name, unless a path or URL is served; the default is the name of the function or
    class. A `port` of 0 means any free port. With the default `host`, the server accepts connections only
    from this machine. Raises InvalidArgument for any other kind of model, and BacklineError, with the reason,
    if the object cannot be loaded, the path or URL cannot be read, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InvalidArgument(f"port is {port}: expected 0 (any free port) to 65535")
    key, debugged = "", ""
    trusted: tuple[str, ...] = ()
    folder = Path(tempfile.mkdtemp(prefix="backline-"))
    try:
        if isinstance(model, str | Path):
            repository: str | Path = model
            name = ""
        else:
            if isinstance(model, type):
                raise InvalidArgument(f"{model.__name__} is a class: serve an instance of it")
            name = name or _name_of(model)
            check_name("model", name)
            repository = folder / "models"
            version = repository / name / "1"
            version.mkdir(parents=True)
            if _is_module(model):
                _export(model, example, version / "model.pt2")
            elif callable(getattr(model, "fit", None)) and hasattr(model, "get_params"):
                if not _is_fitted(model):
                    raise InvalidArgument(
                        f"this {type(model).__name__} is not fitted: call its fit method before you serve it"
                    )
                # The types in the estimator are trusted, because this program already runs their code.
                trusted = _save_estimator(model, version)
            else:
                key = f"{name}-{next(_NUMBERS)}"
                debugged = name
                (version / "model.py").write_text(_adopt(model, key))
        options = ServerOptions(
            repositories=(repository,),
            host=host,
            http_port=port,
            grpc_port=None,
            metrics_port=None,
            frame_ancestors=_NOTEBOOKS,
            lifecycle=LifecycleOptions(
                isolate="never",
                state_folder=folder / "state",
                trust_pickle_models=(name,) if name else (),
                trust_skops_types=trusted,
                own_models=(name,) if name else (),
                debugged_model=debugged,
            ),
        )
        return RunningServer(options, name, folder, key)
    except BaseException:
        _ADOPTED.pop(key, None)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _name_of(model: Any) -> str:
    name = getattr(model, "__name__", "") or type(model).__name__
    return name if name.isidentifier() else "model"  # the name may be "<lambda>"


def _is_module(model: Any) -> bool:
    torch = sys.modules.get("torch")  # a program that has a torch module has imported torch
    return torch is not None and isinstance(model, torch.nn.Module)


def _is_fitted(estimator: Any) -> bool:
    """Returns whether an estimator is fitted: whether it has attributes other than its parameters, or passes
    scikit-learn's check.
    """
    if not vars(estimator).keys() <= estimator.get_params(deep=False).keys():
        return True
    try:
        import_module("sklearn.utils.validation").check_is_fitted(estimator)  # also supports pipelines
    except import_module("sklearn.exceptions").NotFittedError:
        return False
    return True


def _export(module: Any, example: Any, file: Path) -> None:
    """Exports a torch module to `file`, for inputs of any size in the first dimension.

    Raises InvalidArgument if the example is missing or unsuitable, or if torch cannot export the module.
    """
    import torch

    if example is None:
        raise InvalidArgument(
            f"a torch module does not describe its inputs: pass an example of its input, such as"
            f" backline.serve({type(module).__name__.lower()}, example=torch.zeros(1, 16))"
        )
    examples = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(one, torch.Tensor) for one in examples):
        raise InvalidArgument(
            f"example= is an object of type {type(example).__name__}: pass a tensor, or a tuple with a tensor"
            " for each input"
        )
    batched = tuple({0: torch.export.Dim.AUTO} if one.ndim else None for one in examples)
    # The example has two items, because torch treats a dimension of size 1 as a constant.
    doubled = tuple(torch.cat([one, one]) if one.ndim and one.shape[0] == 1 else one for one in examples)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(*doubled)
    except Exception as error:
        module.train(was_training)
        raise InvalidArgument(
            f"the module fails with this example ({type(error).__name__}: {_first_line(error)}): pass one"
            " that it accepts"
        ) from error
    try:
        program = torch.export.export(module, doubled, dynamic_shapes=batched)
        torch.export.save(program, file)
    except Exception as error:
        raise InvalidArgument(
            f"torch cannot export the module ({type(error).__name__}: {_first_line(error)}): serve a function"
            " with type hints that calls it instead"
        ) from error
    finally:
        module.train(was_training)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _save_estimator(estimator: Any, version: Path) -> tuple[str, ...]:
    """Saves an estimator in the skops format, or as a pickle if skops cannot save it.

    Returns the types in the skops file that skops does not trust; empty for a pickle. Raises InvalidArgument
    if the estimator cannot be saved.
    """
    try:
        skops = import_module("skops.io")
        file = version / "model.skops"
        skops.dump(estimator, file)
        return tuple(skops.get_untrusted_types(file=file))
    except Exception:  # skops may not be installed, or may not support the estimator
        (version / "model.skops").unlink(missing_ok=True)
    joblib = import_module("joblib")  # a dependency of scikit-learn
    try:
        joblib.dump(estimator, version / "model.joblib")
    except Exception as error:
        raise InvalidArgument(
            f"the {type(estimator).__name__} cannot be saved ({type(error).__name__}: {error}): serve a"
            " function with type hints that calls it instead"
        ) from error
    return ()


def _adopt(model: Any, key: str) -> str:
    """Stores a function or an object under `key`, and returns the text of a model.py that serves it.

    Raises InvalidArgument if it is neither a function nor an object with a `predict` method, or if its result
    has no type hint.
    """
    predict = model if inspect.isfunction(model) else getattr(model, "predict", None)
    if not (inspect.isfunction(predict) or inspect.ismethod(predict)):
        raise InvalidArgument(
            f"an object of type {type(model).__name__} cannot be served: expected a fitted estimator, a"
            " torch module, a function with type hints, an object whose predict has type hints, or a path"
        )
    if "return" not in getattr(predict, "__annotations__", {}):
        raise InvalidArgument(
            f"{predict.__qualname__} has no type hint for its result: define it as"
            f" def {_name_of(predict)}(x: float) -> float (see docs/python-models.md)"
        )
    _ADOPTED[key] = model
    return (_FUNCTION if predict is model else _INSTANCE).format(key=key)


def adopted_function(key: str, module: str) -> FunctionType:
    """Returns a copy of a served function. The copy appears to be defined in `module`, the generated
    model.py, because functions that a model.py imports are not considered models.
    """
    given: FunctionType = _ADOPTED[key]
    copy = FunctionType(
        given.__code__, given.__globals__, given.__name__, given.__defaults__, given.__closure__
    )
    copy.__kwdefaults__ = given.__kwdefaults__
    copy.__annotations__ = inspect.get_annotations(given)
    copy.__module__ = module
    return copy


def adopted_class(key: str) -> type:
    """Returns a class that, when called, returns the served object instead of a new instance."""
    given = _ADOPTED[key]
    members: dict[str, Any] = {"__new__": lambda cls: given, "predict": type(given).predict}
    return type("Model", (), members)
