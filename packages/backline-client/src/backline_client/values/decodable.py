"""A decorator for classes that msgspec decodes on several threads."""

from __future__ import annotations

from typing import TypeVar

import msgspec

Kind = TypeVar("Kind")


def decodable(kind: type[Kind]) -> type[Kind]:
    """Makes a class safe to decode on several threads.

    msgspec collects the fields of a class when a thread first decodes an object of that class. Other threads
    see the fields before they are complete, so if a second thread decodes the class at that moment, the
    process crashes (seen with msgspec 0.22, although its functions are documented as thread-safe). As a
    decorator, this function collects the fields while the class is being defined, when no other thread can
    use the class.
    """
    msgspec.json.Decoder(kind)
    return kind
