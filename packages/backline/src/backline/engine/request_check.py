"""The checks that a request must pass before a model runs it."""

from __future__ import annotations

from collections.abc import Callable

from backline.engine.ticket import Ticket
from backline_client.values.errors import DecoupledModel, InvalidArgument
from backline_client.values.memo import Memo
from backline_client.values.messages import InferRequest
from backline_client.values.signature import Signature
from backline_client.values.tensor import Shape, Tensor

#: The maximum number of shapes that the check of a model remembers.
_MAX_REMEMBERED = 1024


class DecoupledCheck:
    """The check of requests to decoupled models: the caller must accept any number of responses, and the
    request must pass the usual check.
    """

    def __init__(self, model: str, check: Callable[[Ticket], None]) -> None:
        self._model = model
        self._check = check

    def __call__(self, ticket: Ticket) -> None:
        """Raises DecoupledModel if the caller accepts only one response, and the errors of the usual
        check.
        """
        if not ticket.takes_many:
            raise DecoupledModel(
                f"model '{self._model}' has a decoupled transaction policy, with any number of responses:"
                " request a stream"
            )
        self._check(ticket)


BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended"
    " to each input shape. If you want to specify the full shape including the batch dim in your input dims"
    " config, try setting max_batch_size to zero. See the model configuration docs for more info on"
    " max_batch_size."
)


class RequestCheck:
    """Checks whether a request fits a model, and sets the `batch_size` and `batch_key` of the request's
    ticket.

    The shapes in `signature` include the batch dimension, which is the first, unless `max_batch_size` is 0.
    Requests with equal `batch_key` may share a batch. A request with no items, or with more than
    `max_batch_size`, is refused only if `strict` is set, which means that the limit was configured. A request
    whose inputs have different sizes in the first dimension is refused, unless `proved` is set, which means
    that the batch dimension was proved rather than declared. In that case the first dimension may have
    another meaning in this request (an input is broadcast, or two matrices are multiplied), so the request
    runs alone and counts as one item. Where Triton makes the same check (core/src/infer_request.cc), the
    error has Triton's text, sometimes with more details.
    """

    def __init__(
        self, model: str, signature: Signature, max_batch_size: int, *, strict: bool, proved: bool = False
    ) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._strict = strict
        self._proved = proved
        self._inputs = signature.inputs
        self._outputs = frozenset(spec.name for spec in signature.outputs)
        self._names = frozenset(spec.name for spec in signature.inputs)
        self._required = frozenset(spec.name for spec in signature.inputs if not spec.optional)
        #: The index of the first dimension that is not the batch dimension.
        self._first = first = 1 if max_batch_size else 0
        self._fixed = signature.is_fixed(batched=max_batch_size > 0)
        self._single = len(signature.inputs) == 1 and not signature.inputs[0].optional
        self._items = [
            (spec.name, spec.datatype, len(spec.shape), spec.shape[first:]) for spec in signature.inputs
        ]
        #: The name and the datatype of the only input; None if there are several, or if it is optional.
        self._only = (signature.inputs[0].name, signature.inputs[0].datatype) if self._single else None
        #: The batch sizes and batch keys of requests that have passed the check, by the shape of the only
        #: input. Clients choose the shapes.
        self._passed: Memo[Shape, tuple[int, object]] = Memo(_MAX_REMEMBERED)
        #: The lists of requested outputs that have passed the check.
        self._asked: Memo[tuple[str, ...], bool] = Memo(_MAX_REMEMBERED)

    def __call__(self, ticket: Ticket) -> None:
        """Raises InvalidArgument, with the reason, if the request does not fit the model."""
        request = ticket.request
        inputs = request.inputs
        only, outputs = self._only, request.outputs
        if only is not None and (outputs is None or self._asked.get(outputs)) and len(inputs) == 1:
            tensor = inputs.get(only[0])
            if tensor is not None and tensor.datatype is only[1]:
                passed = self._passed.get(tensor.shape)
                if passed is not None:
                    ticket.batch_size, ticket.batch_key = passed
                    return
        self._check(ticket)

    def _check(self, ticket: Ticket) -> None:
        request = ticket.request
        inputs = request.inputs
        if len(inputs) != len(self._items) or (not self._fixed and inputs.keys() != self._names):
            self._check_names(request)
        outputs = request.outputs
        if outputs is not None:
            for name in outputs:
                if name not in self._outputs:
                    raise InvalidArgument(
                        f"unexpected inference output '{name}' for model '{self._model}',"
                        f" expected one of {', '.join(sorted(self._outputs))}"
                    )
            if len(outputs) <= len(self._outputs):  # a client may repeat names any number of times
                self._asked.keep(outputs, True)
        batched = self._max_batch_size
        size = -1
        alone = False
        for name, datatype, rank, dims in self._items:
            tensor = inputs.get(name)
            if tensor is None:
                self._check_names(request)
                continue
            if tensor.datatype is not datatype:
                raise InvalidArgument(
                    f"{_prefix(request)}inference input '{name}' data-type is '{tensor.datatype.name}', but"
                    f" model '{self._model}' expects '{datatype.name}'"
                )
            shape = tensor.shape
            if len(shape) != rank:
                if rank or shape != (1,):
                    raise self._shape_error(request, name, shape)
                # Triton reports the shape of a scalar as [1], and its clients send scalars with this shape.
                inputs[name] = Tensor(name, datatype, (), tensor.data.reshape(()))
                shape = ()
            if batched:
                if size < 0:
                    size = shape[0]
                    if size < 1 and self._strict:
                        raise InvalidArgument(
                            f"{_prefix(request)}input '{name}' of model '{self._model}' has an empty batch,"
                            f" shape {list(shape)}: send at least one item"
                        )
                    if size > batched and self._strict:
                        raise InvalidArgument(
                            f"{_prefix(request)}inference request batch-size must be <= {batched} for"
                            f" '{self._model}'"
                        )
                elif shape[0] != size and self._proved:
                    alone = True
                elif shape[0] != size:
                    raise InvalidArgument(
                        f"{_prefix(request)}input '{name}' batch size does not match other inputs for"
                        f" '{self._model}'"
                    )
                shape = shape[1:]
            if shape != dims:
                for expected, got in zip(dims, shape, strict=True):
                    if expected not in (-1, got):
                        raise self._shape_error(request, name, tensor.shape)
        if alone:
            ticket.batch_size = 1
            ticket.batch_key = object()  # equals no other key, so the request runs alone
            return
        ticket.batch_size = size if size >= 0 else 1
        if self._single:
            if not self._fixed:
                ticket.batch_key = shape
            self._passed.keep(inputs[name].shape, (ticket.batch_size, ticket.batch_key))
        elif not self._fixed:
            first = self._first
            # The tuple is built from a list, because a generator would take twice as long.
            ticket.batch_key = tuple(
                [(name, inputs[name].shape[first:]) for name, *_ in self._items if name in inputs]
            )

    def _check_names(self, request: InferRequest) -> None:
        given = request.inputs.keys()
        missing = self._required - given
        unknown = given - self._names
        if not missing and not unknown:
            return
        least, most = len(self._required), len(self._names)
        if (
            unknown and least <= len(given) <= most
        ):  # Triton checks the names only if the number of inputs is right
            last, *others = (name for name in reversed(request.inputs) if name in unknown)
            also = f", nor expected: {_names(others)}" if others else ""
            needed = f", but missing required input(s) [{_names(missing)}]" if missing else ""
            # Triton names only one of the unexpected inputs, in practice the last.
            raise InvalidArgument(
                f"unexpected inference input '{last}' for model '{self._model}'{also}; expected"
                f" {_names(self._names)}{needed}"
            )
        expected = f"{most} inputs" if least == most else f"number of inputs between {least} and {most}"
        raise InvalidArgument(
            f"{_prefix(request)}expected {expected} but got {len(given)} inputs for model"
            f" '{self._model}'. Got input(s) [{_names(given)}], but missing required input(s)"
            f" [{_names(missing)}]. Please provide all required input(s)."
            + (f" The model has no input {_names(unknown)}." if unknown else "")
        )

    def _shape_error(self, request: InferRequest, name: str, got: Shape) -> InvalidArgument:
        expected = next(spec.shape for spec in self._inputs if spec.name == name)
        return InvalidArgument(
            f"{_prefix(request)}unexpected shape for input '{name}' for model '{self._model}'. Expected"
            f" {_dims(expected)}, got {_dims(got)}. " + (BATCH_NOTE if self._max_batch_size else "")
        )


def _prefix(request: InferRequest) -> str:
    return f"[request id: {request.id or '<id_unknown>'}] "


def _names(names: object) -> str:
    return ",".join(f"'{name}'" for name in sorted(names))  # type: ignore[call-overload]


def _dims(shape: Shape) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
