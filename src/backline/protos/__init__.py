"""The protobuf messages of the protocols, in a descriptor pool of our own.

The `.proto` files beside this one are the source; `descriptors.binpb` is compiled from them (`make protos`). A pool of our own, because an
embedding program may also import a client library that registers the same names (inference.ModelInferRequest) in the default pool.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """The pool with all files."""
    own = descriptor_pool.DescriptorPool()
    compiled = descriptor_pb2.FileDescriptorSet.FromString(
        Path(__file__).with_name("descriptors.binpb").read_bytes()
    )
    for file in compiled.file:
        own.Add(file)
    return own


@cache
def message(full_name: str) -> Any:
    """The class of a message, such as "inference.ModelInferRequest"."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(full_name))
