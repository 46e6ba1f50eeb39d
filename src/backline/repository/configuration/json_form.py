"""A configuration as plain data, in the form that clients and models of Triton know."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def configuration_json(configuration: Any) -> dict[str, Any]:
    """A message as plain data with the fields' own names; fields without a value too, but not unset messages. 64-bit integers are numbers,
    not strings as in protobuf's own JSON form, because clients of this protocol expect so."""
    document: dict[str, Any] = {}
    for field in configuration.DESCRIPTOR.fields:
        name = field.name
        if field.has_presence:
            if configuration.HasField(name):
                document[name] = _json(field, getattr(configuration, name))
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            document[name] = {
                str(key): _json(entry, value) for key, value in getattr(configuration, name).items()
            }
        elif field.is_repeated:
            document[name] = [_json(field, value) for value in getattr(configuration, name)]
        else:
            document[name] = _json(field, getattr(configuration, name))
    return document


def _json(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return configuration_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value
