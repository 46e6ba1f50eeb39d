"""Determines where each value in a complete configuration comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from backline.engine.config.model_config import ModelConfig
from backline.repository.configuration.document import Document
from backline_client.protos import message

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

Origin = Literal["file", "override", "model", "server", "default"]
#: The fields that the server sets on the basis of measurements. All other fields that the server adds come
#: from the model.
_DECIDED = ("max_batch_size", "instance_group", "dynamic_batching", "parameters")


@dataclass(frozen=True, slots=True)
class Value:
    """A value in a configuration, and its origin. `where` says which file (with line and column, if known),
    load request or folder name the value comes from; it may be empty.
    """

    path: str
    value: Any
    origin: Origin
    where: str = ""


def document_of(config: ModelConfig) -> Document | None:
    """Returns the document from which a model's configuration was read; None if there is no such document."""
    if not config.declared and not config.places:
        return None
    declared = message("inference.ModelConfig").FromString(config.declared)
    return Document(config.source, declared, config.places)


def origins(
    document: Document | None, described: Any, complete: Any, *, model_file: str = "", override: bool = False
) -> list[Value]:
    """Returns the values of the message `complete`, in the order of its fields.

    `document` is the configuration as written: in a file or, if `override` is set, in a load request. The
    message `described` also contains the values that the server found in `model_file` or determined itself.
    """
    written = (
        set() if document is None else {path for path, _ in leaves(document.message)} | document.places.keys()
    )
    found = {path for path, _ in leaves(described)}
    values = []
    for path, value in leaves(complete):
        if document is not None and path in written:
            place = document.place(path)
            where = document.source + (f":{place[0]}:{place[1]}" if place else "")
            values.append(Value(path, value, "override" if override else "file", where))
        elif path == "name":
            values.append(Value(path, value, "default", "the folder's name"))
        elif path in found and not path.startswith(_DECIDED):
            values.append(Value(path, value, "model", model_file))
        else:
            values.append(Value(path, value, "server" if path in found else "default"))
    return values


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path ("input[0].dims") and value of each set field.

    The value of an enumeration is its name; the value of an empty section is {}.
    """
    fields = config.ListFields()
    if not fields and prefix:
        yield prefix.removesuffix("."), {}
    for field, value in fields:
        path = prefix + field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            for key in sorted(value):
                yield from _leaf(inner, value[key], f"{path}[{key}]")
        elif field.is_repeated and field.message_type is not None:
            for index, element in enumerate(value):
                yield from leaves(element, f"{path}[{index}].")
        elif field.is_repeated:
            yield path, [_plain(field, element) for element in value]
        else:
            yield from _leaf(field, value, path)


def _leaf(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if field.message_type is not None:
        yield from leaves(value, path + ".")
    else:
        yield path, _plain(field, value)


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None and value in field.enum_type.values_by_number:
        return field.enum_type.values_by_number[value].name
    return value
