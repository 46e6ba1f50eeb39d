"""ONNX files, written without the library: a model of the suite is a graph of one or two nodes."""

from __future__ import annotations

from oip_conformance.suite_models import Port, SuiteModel

#: TensorProto.DataType of the protocol's datatypes.
_ELEMENTS = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BYTES": 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    "BF16": 16,
}
#: IR 9 and operator set 20, the first with StringConcat.
_IR, _OPSET = 9, 20


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message: a number, or a text or message with its length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value(port: Port, batched: bool) -> bytes:
    """A ValueInfoProto: name, then type with element type and shape, whose sizes are numbers or names."""
    names = [f"{port.name}_{index}" if size < 0 else size for index, size in enumerate(port.shape)]
    sizes: list[int | str] = ["batch", *names] if batched else list(names)
    dims = b"".join(_field(1, _field(1, size) if isinstance(size, int) else _field(2, size)) for size in sizes)
    tensor = _field(1, _ELEMENTS[port.datatype]) + _field(2, dims)
    return _field(1, port.name) + _field(2, _field(1, tensor))


def _node(operator: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    names = b"".join(_field(1, name) for name in inputs)
    return names + _field(2, output) + _field(4, operator) + (_field(5, attribute) if attribute else b"")


def _nodes(model: SuiteModel, version: str) -> list[bytes] | None:
    inputs = [port.name for port in model.inputs]
    outputs = [port.name for port in model.outputs]
    if model.name.startswith("identity_") or model.name == "spare":
        return [_node("Identity", inputs, outputs[0])]
    if model.name == "sum":
        return [_node("Add", inputs, outputs[0]), _node("Sub", inputs, outputs[1])]
    if model.name == "strings":
        return [_node("StringConcat", inputs, outputs[0])]
    if model.name == "versioned":
        # A Constant whose attribute `value` (a tensor, type 4) has no dimensions and the version as its only element.
        tensor = _field(2, _ELEMENTS["INT32"]) + _field(5, int(version))
        value = _field(1, "value") + _field(5, tensor) + _field(20, 4)
        return [_node("Constant", [], "version", value), _node("Add", [*inputs, "version"], outputs[0])]
    return None


def onnx_file(model: SuiteModel, version: str) -> bytes | None:
    """The ONNX file of a model, or None if its behaviour is not one of a graph."""
    nodes = _nodes(model, version)
    if nodes is None:
        return None
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, model.name)
    graph += b"".join(_field(11, _value(port, bool(model.batch))) for port in model.inputs)
    graph += b"".join(_field(12, _value(port, bool(model.batch))) for port in model.outputs)
    return (
        _field(1, _IR) + _field(2, "oip-conformance") + _field(7, graph) + _field(8, _field(1, "") + _field(2, _OPSET))
    )
