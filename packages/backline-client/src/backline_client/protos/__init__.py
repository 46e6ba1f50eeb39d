"""Provides the protobuf messages of the protocols, in a separate descriptor pool.

`make protos` compiles the `.proto` files in this folder into `descriptors.binpb`. The pool is separate
because a program may also import a client library that registers the same names, such as
inference.ModelInferRequest, in the default pool.
"""

from __future__ import annotations

from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool


class Messages:
    """The messages of one file of compiled `.proto` files, in a descriptor pool of their own.

    The pool and the classes are created on first use, because a server with only HTTP clients needs none.
    """

    def __init__(self, compiled: Path) -> None:
        """`compiled` is a serialized FileDescriptorSet, in which files follow those that they import."""
        self._compiled = compiled
        #: Held while the pool or a class is created, because threads and the event loop may ask at the same
        #: time. There must be only one pool, because messages from different pools are not compatible.
        self._making = RLock()
        self._pool: DescriptorPool | None = None
        self._made: dict[str, Any] = {}

    def pool(self) -> DescriptorPool:
        """Returns the descriptor pool."""
        with self._making:
            if self._pool is None:
                # Imported late, because a server with only HTTP clients needs no protobuf messages.
                from google.protobuf import descriptor_pb2, descriptor_pool

                self._pool = descriptor_pool.DescriptorPool()
                for file in descriptor_pb2.FileDescriptorSet.FromString(self._compiled.read_bytes()).file:
                    self._pool.Add(file)
            return self._pool

    def message(self, full_name: str) -> Any:
        """Returns the class of the message with this full name, such as "inference.ModelInferRequest"."""
        made = self._made.get(full_name)
        if made is None:
            from google.protobuf import message_factory

            with self._making:
                made = message_factory.GetMessageClass(self.pool().FindMessageTypeByName(full_name))
                self._made[full_name] = made
        return made


_OWN: Final = Messages(Path(__file__).with_name("descriptors.binpb"))
#: The messages of this folder.
pool, message = _OWN.pool, _OWN.message


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
