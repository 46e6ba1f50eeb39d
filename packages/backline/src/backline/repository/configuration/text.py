"""Reads config.pbtxt, including the place of every field, and writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from backline.engine.document_limits import check_size
from backline.repository.configuration.document import NOT_READ, Document, Place, suggest
from backline_client.protos import message, pool
from backline_client.values.errors import InvalidArgument


def parse(text: str, source: str) -> Document:
    """Returns the document in `text`. Raises InvalidArgument, with file, line and column, if the text is not
    valid.
    """
    parsed = _parse("inference.ModelConfig", text, source, NOT_READ)
    return Document(source, parsed, dict(_FieldPlaces(text).of(parsed.DESCRIPTOR)))


def parse_message(kind: str, text: str, source: str) -> Any:
    """Returns the message of type `kind` in `text`. Raises InvalidArgument, with line and column, if the text
    is not valid.
    """
    return _parse(kind, text, source)


def _parse(kind: str, text: str, source: str, fault: str = "") -> Any:
    check_size(text, source)
    parsed = message(kind)()
    try:
        text_format.Parse(text, parsed, descriptor_pool=pool())
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        where = f"{source}:{line}:{column}" if line is not None else source
        raise InvalidArgument(f"{where}: {fault}{_explain(str(error))}") from None
    return parsed


def render(document: Document) -> str:
    text = str(
        text_format.MessageToString(
            document.message, descriptor_pool=pool(), use_short_repeated_primitives=True, as_utf8=True
        )
    )
    if not document.message.max_batch_size and "max_batch_size" in document.places:
        text = f"max_batch_size: 0\n{text}"  # if it were unset, the server might measure it; see reader.py
    return text


def _explain(error: str) -> str:
    """Returns the parser's error as one line. If the error is about an unknown name, adds the most similar
    known name.
    """
    reason = re.sub(r"^\d+:\d+ : ", "", error.replace("\n", " "))
    if found := re.fullmatch(r'Message type "([\w.]+)" has no field named "([^"]*)"\.', reason):
        descriptor = pool().FindMessageTypeByName(found[1])
        return f"unknown field '{found[2]}'{suggest(found[2], [field.name for field in descriptor.fields])}"
    if found := re.search(r'Enum type "([\w.]+)" has no value named (\w+)\.', reason):
        values = [value.name for value in pool().FindEnumTypeByName(found[1]).values]
        return f"unknown value '{found[2]}'{suggest(found[2], values)}"
    return re.sub(r"^'.*': (?=[A-Z])", "", reason)


class _FieldPlaces:
    """Finds the places of all fields in a valid text, because protobuf's parser does not report them."""

    def __init__(self, text: str) -> None:
        self._tokens: Any = text_format.Tokenizer(text.split("\n"))

    def of(self, descriptor: Descriptor, prefix: str = "", end: str = "") -> Iterator[tuple[str, Place]]:
        """Yields the paths and places of the fields up to the token `end`."""
        tokens = self._tokens
        counts: dict[str, int] = {}
        while tokens.token != end:
            here = tokens.ParseError("")
            place = (here.GetLine(), here.GetColumn())
            name = tokens.ConsumeIdentifier()
            field = descriptor.fields_by_name[name]
            tokens.TryConsume(":")
            yield prefix + name, place
            if tokens.TryConsume("["):
                while not tokens.TryConsume("]"):
                    yield from self._element(field, prefix + name, counts, place)
                    tokens.TryConsume(",")
            else:
                yield from self._element(field, prefix + name, counts, place)
            if not tokens.TryConsume(","):
                tokens.TryConsume(";")

    def _element(
        self, field: FieldDescriptor, path: str, counts: dict[str, int], place: Place
    ) -> Iterator[tuple[str, Place]]:
        tokens = self._tokens
        if field.message_type is None:
            self._skip_scalar()
            return
        index = counts[path] = counts.get(path, -1) + 1
        if field.is_repeated:
            path = f"{path}[{index}]"
            yield path, place
        close = {"{": "}", "<": ">"}[tokens.token]
        tokens.NextToken()
        if field.message_type.GetOptions().map_entry:
            yield from self._entry(field.message_type, path.removesuffix(f"[{index}]"), close, place)
        else:
            yield from self.of(field.message_type, path + ".", close)
        tokens.NextToken()

    def _entry(self, entry: Descriptor, path: str, close: str, place: Place) -> Iterator[tuple[str, Place]]:
        """Yields the paths and places of the fields in an entry of a map. In the path of an entry, the key
        takes the place of an index.
        """
        key = ""
        within: list[tuple[str, Place]] = []
        while self._tokens.token != close:
            name = self._tokens.ConsumeIdentifier()
            self._tokens.TryConsume(":")
            field = entry.fields_by_name[name]
            if field.message_type is not None:
                within += self._element(field, "", {}, place)
            elif name == "key" and field.type == FieldDescriptor.TYPE_STRING:
                key = self._tokens.ConsumeString()
            else:
                key = self._tokens.token if name == "key" else key
                self._skip_scalar()
            if not self._tokens.TryConsume(","):
                self._tokens.TryConsume(";")
        yield f"{path}[{key}]", place
        yield from ((f"{path}[{key}]{inner}", inner_place) for inner, inner_place in within)

    def _skip_scalar(self) -> None:
        tokens = self._tokens
        if tokens.token[:1] in {'"', "'"}:
            while tokens.token[:1] in {'"', "'"}:  # adjacent strings are joined
                tokens.NextToken()
            return
        while tokens.token == "-":
            tokens.NextToken()
        tokens.NextToken()
