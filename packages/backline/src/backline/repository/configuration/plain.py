"""Reads plain data (tables, lists, numbers and strings, as in TOML and JSON) into inference.ModelConfig."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from backline.repository.configuration import native
from backline.repository.configuration.document import Document, Place, suggest
from backline_client.protos import message
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable

#: The path to a value in the data, made of table keys and list indexes.
Keys = tuple[str | int, ...]

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = frozenset({FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE})


def read_plain(
    table: Mapping[str, Any], source: str, places: Mapping[Keys, Place], *, is_json: bool
) -> Document:
    """Returns the document in `table`, whose keys are the names of fields and native settings.

    A section with only one field may be written as the value of that field (`latest = 2`), a list of one
    element as that element, and a value of an enumeration without its prefix ("FP32"). JSON may have
    camelCase names, numbers as strings, and null, as in protobuf's JSON format.

    Raises InvalidArgument, which says where the fault is and what was expected there.
    """
    reader = _PlainReader(source, places, is_json)
    parsed = message("inference.ModelConfig")()
    reader.message(parsed, table, (), "")
    return Document(source, parsed, reader.found)


class _PlainReader:
    def __init__(self, source: str, places: Mapping[Keys, Place], is_json: bool) -> None:
        self._source = source
        self._places = places
        self._is_json = is_json
        self.found: dict[str, Place | None] = {}

    def message(self, target: Any, value: Any, keys: Keys, path: str) -> None:
        """Fills the message `target` from a table, or from a value if the message has only one field."""
        descriptor: Descriptor = target.DESCRIPTOR
        if not isinstance(value, Mapping):
            if len(descriptor.fields) == 1:
                self._field(target, descriptor.fields[0], value, keys, f"{path}.{descriptor.fields[0].name}")
            elif descriptor.fields or value is not True:
                raise self._error(
                    f"expected a table with {_list(field.name for field in descriptor.fields)}", keys, path
                )
            target.SetInParent()
            return
        target.SetInParent()
        for name, inner in value.items():
            inner_keys = (*keys, name)
            field = self._find(descriptor, name)
            if field is not None:
                if inner is None and self._is_json:
                    continue
                inner_path = f"{path}.{field.name}" if path else field.name
                self._note(inner_path, inner_keys)
                self._check_choice(target, field, inner_keys, inner_path)
                self._field(target, field, inner, inner_keys, inner_path)
            elif not path and name in native.SETTINGS:
                self._setting(target, native.SETTINGS[name], inner, inner_keys)
            else:
                known = [field.name for field in descriptor.fields] + ([] if path else list(native.SETTINGS))
                raise self._error(
                    f"unknown {'field' if self._is_json else 'key'} '{name}'{suggest(_snake(name), known)}",
                    inner_keys,
                    path,
                )

    def _find(self, descriptor: Descriptor, name: str) -> FieldDescriptor | None:
        field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
        if field is None and self._is_json:
            field = next((field for field in descriptor.fields if field.json_name == name), None)
        return field

    def _note(self, path: str, keys: Keys) -> None:
        self.found[path] = self._places.get(keys)

    def _check_choice(self, target: Any, field: FieldDescriptor, keys: Keys, path: str) -> None:
        choice = field.containing_oneof
        if choice is not None and (other := target.WhichOneof(choice.name)) not in (None, field.name):
            raise self._error(
                f"'{field.name}' and '{other}' are mutually exclusive; give only one of them",
                keys,
                path.rpartition(".")[0],
            )

    def _field(self, target: Any, field: FieldDescriptor, value: Any, keys: Keys, path: str) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(getattr(target, field.name), field, value, keys, path)
        elif field.is_repeated:
            elements = value if isinstance(value, list) else [value]
            for index, element in enumerate(elements):
                inner_keys = (*keys, index) if isinstance(value, list) else keys
                if field.message_type is not None:
                    self._note(f"{path}[{index}]", inner_keys)
                    self.message(getattr(target, field.name).add(), element, inner_keys, f"{path}[{index}]")
                else:
                    getattr(target, field.name).append(self._scalar(field, element, inner_keys, path))
        elif field.message_type is not None:
            self.message(getattr(target, field.name), value, keys, path)
        else:
            setattr(target, field.name, self._scalar(field, value, keys, path))

    def _map(self, target: Any, field: FieldDescriptor, value: Any, keys: Keys, path: str) -> None:
        if not isinstance(value, Mapping):
            raise self._error("expected a table", keys, path)
        entry: Any = field.message_type
        key_field, value_field = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for name, inner in value.items():
            inner_keys = (*keys, name)
            inner_path = f"{path}[{name}]"
            self._note(inner_path, inner_keys)
            key = (
                name
                if key_field.type == FieldDescriptor.TYPE_STRING
                else self._number(key_field, name, inner_keys, path)
            )
            if value_field.message_type is None:
                target[key] = self._scalar(value_field, inner, inner_keys, inner_path)
            else:
                self.message(target[key], self._parameter(path, inner), inner_keys, inner_path)

    def _parameter(self, path: str, value: Any) -> Any:
        """Returns the value of a parameter; converts a number to a string."""
        return repr(value) if path == "parameters" and type(value) in (int, float) else value

    def _setting(self, target: Any, setting: native.Setting, value: Any, keys: Keys) -> None:
        """Writes a native setting into the message `target`, as one or more `backline.*` parameters."""
        if setting.by_key and not isinstance(value, Mapping):
            raise self._error(f"'{setting.name}' is {_shown(value)}, expected a table", keys, "")
        for key, inner in value.items() if setting.by_key else ():
            if setting.fields:
                self._fields(target, setting, key, inner, (*keys, key))
            else:
                self._entry(target, setting, f"{setting.name}.{key}", inner, (*keys, key))
        if not setting.by_key:
            self._entry(target, setting, setting.name, value, keys)

    def _fields(self, target: Any, setting: native.Setting, entry: str, value: Any, keys: Keys) -> None:
        name = f"{setting.name}.{entry}"
        if not isinstance(value, Mapping):
            raise self._error(f"'{name}' is {_shown(value)}, expected a table", keys, "")
        for key, inner in value.items():
            field = setting.field(key)
            if field is None:
                raise self._error(
                    f"unknown key '{key}'{suggest(key, [field.name for field in setting.fields])}",
                    (*keys, key),
                    "",
                )
            self._entry(target, field, f"{name}.{key}", inner, (*keys, key))

    def _entry(self, target: Any, setting: native.Setting, name: str, value: Any, keys: Keys) -> None:
        if type(value) not in setting.plain or (
            isinstance(value, list) and not all(type(part) in (str, int) for part in value)
        ):
            raise self._error(f"'{name}' is {_shown(value)}, expected {setting.expected}", keys, "")
        key = native.parameter(name)
        self._note(f"parameters[{key}]", keys)
        target.parameters[key].string_value = native.as_text(value)

    def _scalar(self, field: FieldDescriptor, value: Any, keys: Keys, path: str) -> Any:
        if field.enum_type is not None:
            return self._enumerated(field.enum_type, value, keys, path)
        if field.type in _INTEGERS:
            return self._number(field, value, keys, path)
        if field.type in _FLOATS:
            if type(value) in (int, float):
                return float(value)
            expected = "a number"
        elif field.type == FieldDescriptor.TYPE_BOOL:
            if isinstance(value, bool):
                return value
            expected = "true or false"
        else:
            if isinstance(value, str):
                return value
            expected = "a string"
        raise self._error(f"'{field.name}' is {_shown(value)}, expected {expected}", keys, path)

    def _number(self, field: FieldDescriptor, value: Any, keys: Keys, path: str) -> int:
        lowest, highest = _INTEGERS[field.type]
        text_allowed = self._is_json or field.name == "key"
        if text_allowed and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
            value = int(value)
        if self._is_json and isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self._error(f"'{field.name}' is {_shown(value)}, expected a whole number", keys, path)
        if not lowest <= value <= highest:
            raise self._error(
                f"'{field.name}' is {_shown(value)}, expected {lowest} to {highest}", keys, path
            )
        return value

    def _enumerated(self, kinds: EnumDescriptor, value: Any, keys: Keys, path: str) -> int:
        if self._is_json and type(value) is int and value in kinds.values_by_number:
            return value
        if isinstance(value, str):
            for kind in kinds.values:
                if value == kind.name or (
                    value and kind.name.endswith(f"_{value}") and value == kind.name.partition("_")[2]
                ):
                    return int(kind.number)
            aliased = (
                value if value.startswith(("TYPE_", "KIND_")) or kinds.name != "DataType" else f"TYPE_{value}"
            )
            raise self._error(
                f"unknown value '{value}'{suggest(aliased, [kind.name for kind in kinds.values])}", keys, path
            )
        raise self._error(
            f"expected one of {', '.join(kind.name for kind in kinds.values)}, not {_shown(value)}",
            keys,
            path,
        )

    def _error(self, reason: str, keys: Keys, path: str) -> InvalidArgument:
        reason = printable(reason)
        while keys and keys not in self._places:
            keys = keys[:-1]
        if keys:
            line, column = self._places[keys]
            return InvalidArgument(f"{self._source}:{line}:{column}: {reason}")
        return InvalidArgument(f"{self._source}: {printable(f'{path}: ') if path else ''}{reason}")


def _shown(value: Any) -> str:
    text = (
        {True: "true", False: "false", None: "null"}[value]
        if value is None or isinstance(value, bool)
        else repr(value)
    )
    if isinstance(value, Mapping | list):
        return "a table" if isinstance(value, Mapping) else "a list"
    return text if len(text) <= 60 else text[:60] + "..."


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing in it"
