"""Where the keys of a TOML text stand: the parser of the standard library does not say."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

from backline.repository.configuration.document import Place

Keys = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL
)
_BARE = re.compile(r"[^,\]}\n#]*")


def places_of_keys(text: str) -> dict[Keys, Place]:
    """The line and column (from 1) of every key and every element of a list in a TOML text that is known to be valid."""
    return _Scanner(text).places


class _Scanner:
    def __init__(self, text: str) -> None:
        self.places: dict[Keys, Place] = {}
        self._text = text
        self._lines = [0, *(found.end() for found in re.finditer(r"\n", text))]
        self._at = 0
        #: The index of the newest element of each array of tables.
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
        """The table that a header names: within an array of tables, its newest element."""
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
