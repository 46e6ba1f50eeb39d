"""The protobuf messages of the protocols, in a separate descriptor pool.

`make protos` compiles the `.proto` files in this folder into `descriptors.binpb`. The pool is separate
because a program may also import a client library that registers the same names, such as
inference.ModelInferRequest, in the default pool.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """The pool with the files of this folder."""
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
