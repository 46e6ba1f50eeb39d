"""Provides the protobuf messages of the protocols, in a separate descriptor pool.

`make protos` compiles the `.proto` files in this folder into `descriptors.binpb`. The pool is separate
because a program may also import a client library that registers the same names, such as
inference.ModelInferRequest, in the default pool.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool


#: The lock is held while the pool or a message class is created, because threads and the event loop may
#: request the pool at the same time. There must be only one pool, because messages from different pools are
#: not compatible.
_making = RLock()
_made: dict[str, Any] = {}


def pool() -> DescriptorPool:
    """Returns the descriptor pool with the files of this folder."""
    with _making:
        return _pool()


@cache
def _pool() -> DescriptorPool:
    # Imported late, because a server with only HTTP clients needs no protobuf messages.
    from google.protobuf import descriptor_pb2, descriptor_pool

    own = descriptor_pool.DescriptorPool()
    compiled = descriptor_pb2.FileDescriptorSet.FromString(
        Path(__file__).with_name("descriptors.binpb").read_bytes()
    )
    for file in compiled.file:
        own.Add(file)
    return own


def message(full_name: str) -> Any:
    """Returns the class of the message with this full name, such as "inference.ModelInferRequest"."""
    made = _made.get(full_name)
    if made is None:
        from google.protobuf import message_factory

        with _making:
            made = message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))
            _made[full_name] = made
    return made


def to_plain(value: Any) -> dict[str, Any]:
    """Converts a message to plain data with the original field names. Includes fields with default values,
    but no unset messages.

    Enumeration values become names. 64-bit integers become numbers, and not strings as in protobuf's JSON
    form, because clients of the Open Inference Protocol expect numbers.
    """
    plain: dict[str, Any] = {}
    for field in value.DESCRIPTOR.fields:
        content = getattr(value, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"]
            plain[field.name] = {str(key): _plain(item, entry) for key, entry in content.items()}
        elif field.is_repeated:
            plain[field.name] = [_plain(field, entry) for entry in content]
        elif not field.has_presence or value.HasField(field.name):
            plain[field.name] = _plain(field, content)
    return plain


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value
