"""The tensor datatypes, with their protocol and configuration names, numpy dtypes and item sizes."""

from __future__ import annotations

from enum import Enum

import numpy as np

from backline_client.values.errors import InvalidArgument


class DataType(Enum):
    """A tensor's datatype, named as in the Open Inference Protocol.

    `dtype` is the numpy dtype of the data. Data of type BYTES are object arrays of `bytes`. Data of type
    BF16, which numpy lacks, are uint16 arrays that contain the bits. `itemsize` is the size of an element in
    bytes; it is 0 for BYTES, whose elements vary in size. `config_name` is the name in config.pbtxt.
    """

    BOOL = (np.bool_, 1, "TYPE_BOOL")
    UINT8 = (np.uint8, 1, "TYPE_UINT8")
    UINT16 = (np.uint16, 2, "TYPE_UINT16")
    UINT32 = (np.uint32, 4, "TYPE_UINT32")
    UINT64 = (np.uint64, 8, "TYPE_UINT64")
    INT8 = (np.int8, 1, "TYPE_INT8")
    INT16 = (np.int16, 2, "TYPE_INT16")
    INT32 = (np.int32, 4, "TYPE_INT32")
    INT64 = (np.int64, 8, "TYPE_INT64")
    FP16 = (np.float16, 2, "TYPE_FP16")
    FP32 = (np.float32, 4, "TYPE_FP32")
    FP64 = (np.float64, 8, "TYPE_FP64")
    BYTES = (np.object_, 0, "TYPE_STRING")
    BF16 = (np.uint16, 2, "TYPE_BF16")

    def __new__(cls, scalar: type, itemsize: int, config_name: str) -> DataType:
        member = object.__new__(cls)
        member._value_ = config_name
        return member

    def __init__(self, scalar: type, itemsize: int, config_name: str) -> None:
        self.dtype: np.dtype = np.dtype(scalar)
        self.itemsize = itemsize
        self.config_name = config_name

    @classmethod
    def from_name(cls, name: str) -> DataType:
        """Returns the datatype whose name in requests is `name` ("FP32"). Raises InvalidArgument if there is
        none.
        """
        try:
            return _BY_NAME[name]
        except (KeyError, TypeError):
            raise InvalidArgument(
                f"unknown datatype {name!r}, expected one of {', '.join(_BY_NAME)}"
            ) from None

    #: Members are compared by identity. The hash function of Enum is written in Python, which would slow down
    #: lookups in caches.
    __hash__ = object.__hash__

    @classmethod
    def from_config_name(cls, name: str) -> DataType:
        """Returns the datatype whose name in config.pbtxt is `name` ("TYPE_FP32"). Raises KeyError if there
        is none.
        """
        return _BY_CONFIG_NAME[name]

    @classmethod
    def from_dtype(cls, dtype: np.dtype) -> DataType:
        """Returns the datatype for a numpy dtype (BYTES for strings and objects). Raises InvalidArgument if
        there is none.
        """
        if dtype.kind in "OSU":
            return cls.BYTES
        try:
            return _BY_DTYPE[dtype]
        except KeyError:
            raise InvalidArgument(
                f"numpy dtype {dtype} matches none of the datatypes {', '.join(_BY_NAME)}"
            ) from None


_BY_NAME = {member.name: member for member in DataType}
_BY_CONFIG_NAME = {member.config_name: member for member in DataType}
_BY_DTYPE = {member.dtype: member for member in DataType if member is not DataType.BF16}
