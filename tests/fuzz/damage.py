"""Copies of model folders with one damaged file: by bytes, by members of an archive, or by absurd numbers."""

from __future__ import annotations

import io
import random
import re
import shutil
import struct
import zipfile
from pathlib import Path

TEXT = (".txt", ".xml", ".pbtxt", ".toml", ".json", "MLmodel", ".py", ".yaml")
NUMBERS = ["-1", "0", "1e999", "nan", "2147483648", "4294967295", "9223372036854775808", "1" * 400, "", "[]"]
WORDS = [-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A copy that is cut short, has a few wrong bytes, or has a part twice or not at all."""
    if not content:
        return bytes(chance.randrange(256) for _ in range(8))
    at = chance.randrange(len(content))
    match chance.randrange(4):
        case 0:
            return content[:at]
        case 1:
            size = chance.choice((1, 4, 64, 1024))
            return content[:at] + content[at + size :]
        case 2:
            size = chance.choice((1, 4, 64, 1024))
            return content[:at] + content[at : at + size] * 2 + content[at + size :]
    wrong = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        wrong[chance.randrange(len(wrong))] = chance.randrange(256)
    return bytes(wrong)


def crafted_text(content: bytes, chance: random.Random) -> bytes:
    """A copy of a text with an absurd number, a repeated line, or deep nesting."""
    text = content.decode("utf-8", "replace")
    numbers = list(re.finditer(r"-?\d+(\.\d+)?", text))
    kind = chance.randrange(4)
    if numbers and kind < 2:
        found = chance.choice(numbers)
        return (text[: found.start()] + chance.choice(NUMBERS) + text[found.end() :]).encode()
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    if kind == 2:
        return "".join([*lines[:at], lines[at] * chance.choice((2, 3000)), *lines[at + 1 :]]).encode()
    deep = chance.choice(("[", "{", "<a>", "(", "a {", '"')) * chance.choice((1, 200, 20_000))
    return "".join([*lines[:at], deep, *lines[at:]]).encode()


def crafted_bytes(content: bytes, chance: random.Random) -> bytes:
    """A copy in which a word of 4 or 8 bytes, or a varint, is an absurd number."""
    wrong = bytearray(content or bytes(16))
    word = chance.choice(WORDS)
    match chance.randrange(3):
        case 0:
            encoded = struct.pack("<Q", word % 2**64)
        case 1:
            encoded = struct.pack("<I", word % 2**32)
        case _:
            encoded, rest = b"", word % 2**64
            while rest > 127:
                encoded, rest = encoded + bytes([rest & 127 | 128]), rest >> 7
            encoded += bytes([rest])
    at = chance.randrange(len(wrong)) // 4 * 4
    wrong[at : at + len(encoded)] = encoded
    return bytes(wrong)


def within(name: str, content: bytes, chance: random.Random, crafted: bool) -> bytes:
    """A damaged copy of a file; most copies of a zip file are valid archives with a damaged member."""
    if content[:2] == b"PK" and chance.randrange(4):
        with zipfile.ZipFile(io.BytesIO(content)) as whole:
            members = [(one, whole.read(one)) for one in whole.infolist()]
        victim = chance.randrange(len(members))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", members[0][0].compress_type) as copy:
            for index, (one, held) in enumerate(members):
                copy.writestr(
                    one.filename, held if index != victim else within(one.filename, held, chance, crafted)
                )
        return packed.getvalue()
    if not crafted:
        return damaged(content, chance)
    return (crafted_text if name.endswith(TEXT) else crafted_bytes)(content, chance)


def write_copy(kind: str, model: Path, copy: Path, seed: int, number: int, crafted: bool) -> None:
    """Writes copy `number` of a model, with one file damaged."""
    chance = random.Random(f"{seed} {kind} {number} {crafted}")
    shutil.copytree(model, copy)
    configuration = copy / kind
    files = sorted(path for path in (copy / "1").rglob("*") if path.is_file())
    if configuration.exists():
        files = [configuration]
    victim = chance.choice(files)
    victim.write_bytes(within(victim.name, victim.read_bytes(), chance, crafted))
