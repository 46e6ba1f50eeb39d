"""Reads and writes model.toml, in which the fields of inference.ModelConfig and the native settings are plain
keys.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from backline.engine.document_limits import check_toml
from backline.repository.configuration import native
from backline.repository.configuration.document import Document, Place
from backline.repository.configuration.plain import Keys, read_plain
from backline_client.values.errors import InvalidArgument

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL
)
_BARE = re.compile(r"[^,\]}\n#]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def parse(text: str, source: str) -> Document:
    """Returns the document in `text`. Raises InvalidArgument, with file, line and column, if the text is not
    valid.
    """
    check_toml(text, source)
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", reason, re.DOTALL):
            raise InvalidArgument(f"{source}:{found[2]}:{found[3]}: {found[1]}") from None
        if reason.endswith(" (at end of document)"):
            lines = text.split("\n")
            raise InvalidArgument(f"{source}:{len(lines)}:{len(lines[-1]) + 1}: {reason}") from None
        raise InvalidArgument(f"{source}: {reason}") from None
    except RecursionError:
        raise InvalidArgument(f"{source}: the document is nested too deeply") from None
    return read_plain(table, source, _KeyScanner(text).places, is_json=False)


def render(document: Document) -> str:
    """Returns a model.toml with the fields of `document`, in the order of the message, and with its native
    settings.
    """
    message = document.message
    plain: list[str] = []
    sections: list[str] = []
    for field, value in message.ListFields():
        if field.name == "parameters":
            continue
        if _is_map(field):
            sections.append(
                _table(
                    f"[{field.name}]",
                    [f"{_key(str(key))} = {_entry(field, value[key])}" for key in sorted(value)],
                )
            )
        elif field.message_type is None:
            plain.append(f"{field.name} = {_value(field, value)}")
        elif field.is_repeated:
            sections += [_table(f"[[{field.name}]]", _pairs(element)) for element in value]
        else:
            sections.append(_table(f"[{field.name}]", _pairs(value)))
    if not message.max_batch_size and "max_batch_size" in document.places:
        plain.append("max_batch_size = 0")  # if it were unset, the server might measure it; see reader.py
    settings, parameters = _settings(message.parameters)
    if parameters:
        sections.append(
            _table("[parameters]", [f"{_key(key)} = {_string(text)}" for key, text in parameters.items()])
        )
    return "\n\n".join(filter(None, ["\n".join(plain + settings), *sections])) + "\n"


def _settings(parameters: Any) -> tuple[list[str], dict[str, str]]:
    """Returns the lines that set the native settings, and a dictionary of all other parameters."""
    others: dict[str, str] = {}
    lines = []
    tables: dict[str, dict[str, str | list[str]]] = {}
    for key in sorted(parameters):
        text = parameters[key].string_value
        name, _, entry = key.removeprefix(native.PREFIX).partition(".")
        setting = native.SETTINGS.get(name)
        if not key.startswith(native.PREFIX) or setting is None:
            others[key] = text
        elif setting.fields:
            entry, _, inner = entry.rpartition(".")
            field = setting.field(inner)
            assert field is not None, "the document was checked"
            entries = tables.setdefault(name, {}).setdefault(entry, [])
            assert isinstance(entries, list), "it has fields"
            entries.append(f"{_key(inner)} = {_setting(field, text)}")
        elif setting.by_key:
            tables.setdefault(name, {})[entry] = _setting(setting, text)
        else:
            lines.append(f"{name} = {_setting(setting, text)}")
    for name, entries_of in tables.items():
        pairs = [
            f"{_key(key)} = {value if isinstance(value, str) else _inline(value)}"
            for key, value in entries_of.items()
        ]
        lines.append(f"{name} = {_inline(pairs)}")
    return lines, others


def _inline(pairs: list[str]) -> str:
    return "{ " + ", ".join(pairs) + " }"


def _setting(setting: native.Setting, text: str) -> str:
    """Returns the value of a setting as TOML; `text` is the text of the setting's parameter."""
    if list in setting.plain:
        parts = [part.strip() for part in text.split(",")]
        return (
            "["
            + ", ".join(
                part if part.isdecimal() and not part.startswith("0") else _string(part) for part in parts
            )
            + "]"
        )
    return _string(text) if str in setting.plain else text


def _table(header: str, lines: list[str]) -> str:
    return "\n".join([header, *lines])


def _pairs(message: Any) -> list[str]:
    """Returns a line `key = value` for each field that is set."""
    return [f"{field.name} = {_value(field, value)}" for field, value in _set_fields(message)]


def _set_fields(message: Any) -> Iterator[tuple[FieldDescriptor, Any]]:
    """Yields the set fields. The chosen field of a oneof counts as set even if it has its default value."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if message.HasField(field.name) if field.has_presence else value or (_is_map(field) and len(value)):
            yield field, value


def _value(field: FieldDescriptor, value: Any) -> str:
    if _is_map(field):
        return (
            "{ "
            + ", ".join(f"{_key(str(key))} = {_entry(field, value[key])}" for key in sorted(value))
            + " }"
        )
    if field.is_repeated:
        return "[" + ", ".join(_single(field, element) for element in value) + "]"
    return _single(field, value)


def _entry(field: FieldDescriptor, value: Any) -> str:
    entry: Any = field.message_type
    return _single(entry.fields_by_name["value"], value)


def _single(field: FieldDescriptor, value: Any) -> str:
    if field.message_type is not None:
        fields = field.message_type.fields
        if len(fields) == 1 and not _is_map(fields[0]) and (value.ListFields() or fields[0].is_repeated):
            return _value(fields[0], getattr(value, fields[0].name))
        pairs = _pairs(value)
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return _string(known.name.removeprefix("TYPE_")) if known is not None else str(value)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string(value)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "true" if value else "false"
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return f"{value:.9g}"
    return repr(value)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _key(text: str) -> str:
    return text if _BARE_KEY.fullmatch(text) else _string(text)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class _KeyScanner:
    """Finds the line and column of every key and list element in a valid TOML text, because tomllib does not
    report them.
    """

    def __init__(self, text: str) -> None:
        self.places: dict[Keys, Place] = {}
        self._text = text
        #: The offsets at which lines start. Counting the line breaks before each key would take quadratic
        #: time.
        self._lines = [0, *(found.end() for found in re.finditer(r"\n", text))]
        self._at = 0
        #: For each array of tables, the index of the last element so far.
        self._newest: dict[Keys, int] = {}
        table: Keys = ()
        while self._skip_blank() < len(text):
            if self._take("[["):
                table = self._header()
                self._newest[table] = self._newest.get(table, -1) + 1
                table = (*table, self._newest[table])
                self.places[table] = self.places[table[:-1]]
                self._at += len("]]")
            elif self._take("["):
                table = self._header()
                self._at += len("]")
            else:
                self._pair(table)

    def _skip_blank(self) -> int:
        self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
        return self._at

    def _take(self, token: str) -> bool:
        found = self._text.startswith(token, self._at)
        self._at += len(token) if found else 0
        return found

    def _header(self) -> Keys:
        """Returns the path of the table that a header names. For an array of tables, this is the path of its
        last element so far.
        """
        self._skip_blank()
        path: Keys = ()
        for part, place in self._dotted():
            if path in self._newest:
                path = (*path, self._newest[path])
            path = (*path, part)
            self.places[path] = place
        self._skip_blank()
        return path

    def _dotted(self) -> list[tuple[str, Place]]:
        parts = []
        while True:
            place = self._place()
            key = _KEY.match(self._text, self._at)
            assert key is not None, "a valid text has a key here"
            self._at = key.end()
            parts.append((tomllib.loads(f"key = {key[0]}")["key"] if key[0][0] in "\"'" else key[0], place))
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                return parts
            self._at = dot.end()

    def _place(self) -> Place:
        line = bisect_right(self._lines, self._at)
        return line, self._at - self._lines[line - 1] + 1

    def _pair(self, table: Keys) -> None:
        path = table
        for part, place in self._dotted():
            path = (*path, part)
            self.places.setdefault(path, place)
        self._skip_blank()
        self._at += len("=")
        self._skip_blank()
        self._value(path)

    def _value(self, path: Keys) -> None:
        if self._take("["):
            index = 0
            while self._text[self._skip_blank()] != "]":
                self.places[(*path, index)] = self._place()
                self._value((*path, index))
                index += 1
                self._skip_blank()
                self._take(",")
            self._at += len("]")
        elif self._take("{"):
            while self._text[self._skip_blank()] != "}":
                self._pair(path)
                self._skip_blank()
                self._take(",")
            self._at += len("}")
        else:
            value = _STRING.match(self._text, self._at) or _BARE.match(self._text, self._at)
            self._at = value.end()  # type: ignore[union-attr]
