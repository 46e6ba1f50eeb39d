"""Runs warm-up requests on a version before the version is ready, so that no client waits for work that a
model does only once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from msgspec import Struct

from backline.backends.backend import Run
from backline.engine.config.model_config import ModelConfig, WarmUpInput, WarmUpSample
from backline.engine.ticket import Ticket, unsubmitted
from backline.lifecycle.loading.trial_inputs import NORMAL, ZEROS, make_values
from backline.observe.prediction_log import LARGEST, read_log
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Shape, Tensor, decode_tensor, element_count

log = logging.getLogger("backline.lifecycle")


def warm_up(
    name: str,
    run: Run,
    all_outputs: tuple[str, ...],
    check: Callable[[Ticket], None],
    samples: Iterable[WarmUpRequest],
) -> int:
    """Runs warm-up samples on the model `name`; returns the number of runs.

    This may take minutes: call it on a thread. Raises BacklineError, with the sample's label, if a sample
    fails, or if a sample other than a recorded request does not pass `check`. Recorded requests that do not
    pass `check` are skipped.
    """
    runs = 0
    for sample in samples:
        try:
            request = fitting_request(name, check, sample)
        except InvalidArgument as error:
            if sample.must_fit:
                raise
            log.warning("a recorded request is skipped: %s", error.message)
            continue
        inputs = {name: tensor.data for name, tensor in request.inputs.items()}
        try:
            for _ in range(sample.count):
                run(inputs, sample.outputs or all_outputs)
                runs += 1
        except BacklineError as error:
            raise type(error)(f"{sample.label} failed: {error.message}") from None
    return runs


def fitting_request(name: str, check: Callable[[Ticket], None], sample: WarmUpRequest) -> InferRequest:
    """Converts the sample to a request to the model `name`. Raises InvalidArgument if `check` refuses the
    request.
    """
    request = InferRequest(name, dict(sample.inputs), outputs=sample.outputs)
    try:
        check(unsubmitted(request))
    except InvalidArgument as error:
        reason = error.message.removeprefix("[request id: <id_unknown>] ")
        if not sample.must_fit:
            raise InvalidArgument(f"{sample.label} does not fit the model: {reason}") from None
        # Triton reports this as the error of a request without an id.
        begin = f"Invalid argument: [request id: <id_unknown>] {reason}"
        raise InvalidArgument(f"{begin}; {sample.label} does not fit the model") from None
    return request


#: The folder of `model_warmup` data files, below the model's folder (Triton's name).
WARM_UP_FOLDER = "warmup"
#: The warm-up file of SavedModels, below the version's folder (TensorFlow Serving's name).
TENSORFLOW_FILE = "assets.extra/tf_serving_warmup_requests"
#: The maximum number of records of a warm-up file that are run (TensorFlow Serving's limit).
MAX_RECORDS = 1000
#: The maximum `count` of a sample.
MAX_COUNT = 100_000


class WarmUpRequest(Struct, frozen=True):
    """A request that warm-up runs `count` times. Messages name it by its `label`. `outputs` is None to ask
    for all outputs.

    `must_fit` is False for a recorded request, which may be for an earlier version with other inputs.
    """

    label: str
    inputs: Mapping[str, Tensor]
    count: int = 1
    outputs: tuple[str, ...] | None = None
    must_fit: bool = True


def warm_up_samples(
    config: ModelConfig,
    *,
    batched: bool,
    version_folder: Path | None,
    model_folder: Path,
    recorded: Path | None = None,
) -> Iterator[WarmUpRequest]:
    """Yields all warm-up samples of a version, created one at a time.

    With `batched`, the shapes in the configuration have no batch dimension, so one is added. `version_folder`
    holds the model file, and perhaps TENSORFLOW_FILE; None if the version is known to have no such file.
    `model_folder` holds the folder WARM_UP_FOLDER. The file `recorded` need not exist. Raises
    InvalidArgument, with the names of the sample, the input and the file, if a sample cannot be created.
    """
    for sample in config.warm_up:
        yield _configured(config, sample, model_folder / WARM_UP_FOLDER, batched=batched)
    file = None if version_folder is None else version_folder / TENSORFLOW_FILE
    if file is not None and file.exists():
        yield from _logged(file, must_fit=True)
    if recorded is not None and _is_there(recorded):
        yield from _logged(recorded, must_fit=False)


def _is_there(recorded: Path) -> bool:
    """Returns whether the file of recorded requests exists; False if the state folder is unreadable."""
    try:
        recorded.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        text = "'%s' cannot be read (%s), so warm-up runs without the requests recorded there"
        log.warning(text, recorded, error.strerror)
        return False
    return True


def _logged(file: Path, *, must_fit: bool) -> Iterator[WarmUpRequest]:
    for request in read_log(file):
        if request.number > MAX_RECORDS:
            log.warning("'%s' has more than %d records; the others are not run", file, MAX_RECORDS)
            return
        if request.other:
            text = "'%s', record %d: a %s is skipped, because only predict requests are run"
            log.warning(text, file, request.number, request.other)
            continue
        label = f"warm-up request {request.number} of '{file}'"
        yield WarmUpRequest(label, request.inputs, outputs=request.outputs, must_fit=must_fit)


#: The maximum number of configured samples that trial runs use.
_MOST_ITEMS = 8


def warm_up_items(config: ModelConfig, model_folder: Path) -> list[Mapping[str, Tensor]]:
    """Returns the inputs of the first configured samples, without a batch dimension, for trial runs. Skips
    samples that cannot be created.
    """
    items: list[Mapping[str, Tensor]] = []
    for sample in config.warm_up[:_MOST_ITEMS]:
        with suppress(InvalidArgument):  # the warm-up itself reports the error
            items.append(
                {
                    given.name: _tensor(sample.name, given, None, model_folder / WARM_UP_FOLDER, seed)
                    for seed, given in enumerate(sample.inputs)
                }
            )
    return items


def _configured(config: ModelConfig, sample: WarmUpSample, folder: Path, *, batched: bool) -> WarmUpRequest:
    label = f"warm-up sample '{sample.name}' of {config.source or config.name}"
    if sample.batch_size > 1 and not batched:
        raise InvalidArgument(
            f"{label}: batch_size is {sample.batch_size}, but the model takes no batches: set it to 0"
        )
    if sample.count > MAX_COUNT:
        raise InvalidArgument(f"{label}: count is {sample.count}, expected at most {MAX_COUNT}")
    inputs = {}
    for seed, given in enumerate(sample.inputs):
        if given.name in inputs:
            raise InvalidArgument(f"{label}: input '{given.name}' is given twice")
        rows = max(1, sample.batch_size) if batched else None
        inputs[given.name] = _tensor(f"{label}: input '{given.name}'", given, rows, folder, seed)
    return WarmUpRequest(label, inputs, max(1, sample.count))


def _tensor(where: str, given: WarmUpInput, rows: int | None, folder: Path, seed: int) -> Tensor:
    """Makes an input: `rows` copies of one item or, if `rows` is None, a tensor of exactly `given.shape`."""
    if any(dimension < 0 for dimension in given.shape):
        raise InvalidArgument(f"{where} has the dims {list(given.shape)}; every dimension needs a fixed size")
    shape: Shape = given.shape if rows is None else (rows, *given.shape)
    count = element_count(given.shape)
    if element_count(shape) * (given.datatype.itemsize or 8) > LARGEST:
        raise InvalidArgument(f"{where} has the shape {list(shape)}, which takes more than {LARGEST} bytes")
    if given.source == "zero":
        data = make_values(given.datatype, count, ZEROS, 0)
    elif given.source == "random":
        data = make_values(given.datatype, count, NORMAL, seed + 1)
    else:
        data = _read(where, given, folder)
    item = data.reshape(given.shape)
    data = item if rows is None else np.repeat(item[np.newaxis], rows, axis=0)
    return Tensor(given.name, given.datatype, shape, data)


def _read(where: str, given: WarmUpInput, folder: Path) -> np.ndarray:
    file = folder / given.source
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InvalidArgument(f"{where}: input_data_file '{given.source}' points outside '{folder}'")
        if not file.is_file():
            fault = "is not a regular file" if file.exists() else "does not exist"
            raise InvalidArgument(f"{where}: input_data_file '{file}' {fault}")
        expected = element_count(given.shape) * given.datatype.itemsize
        size = file.stat().st_size
        if size > LARGEST or (given.datatype.itemsize and size != expected):
            text = f"expected {expected} bytes for shape {list(given.shape)} of {given.datatype.name}"
            fault = text if given.datatype.itemsize else f"more than {LARGEST}"
            raise InvalidArgument(f"{where}: '{file}' has {size} bytes, {fault}")
        raw = file.read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{where}: input_data_file '{given.source}' cannot be read: {error}") from None
    try:
        return decode_tensor(given.name, given.datatype, given.shape, raw).data
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: '{file}': {error.message}") from None
