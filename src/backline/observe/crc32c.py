"""CRC-32C (RFC 3720, appendix B.4), fast enough in numpy for files of some megabytes."""

from __future__ import annotations

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
#: From this many bytes on they are computed in so many lanes at once.
_LONG = 1 << 16
_LANES = 1024


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of `data`."""
    state = 0xFFFFFFFF
    rest = memoryview(data)
    if len(rest) >= _LONG:
        length = len(rest) // _LANES
        state = _in_lanes(np.frombuffer(rest[: length * _LANES], np.uint8).reshape(_LANES, length))
        rest = rest[length * _LANES :]
    table = _table().tolist()
    for byte in rest:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _in_lanes(blocks: np.ndarray) -> int:
    """The state after all rows of `blocks`, one after another.

    The state is linear over GF(2): that after a block is what the block gives from 0, xor what as many zeros make of the state before it.
    So all blocks are computed side by side from 0, along with the 32 single bits that zeros follow; then neighbours are joined two by two.
    """
    lanes, length = blocks.shape
    table = _table()
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    states = np.concatenate([np.zeros(lanes, np.uint32), bits])
    states[0] = 0xFFFFFFFF
    columns = np.zeros((length, lanes + 32), np.uint8)
    columns[:, :lanes] = blocks.T
    for column in columns:
        states = table[(states ^ column) & np.uint32(0xFF)] ^ (states >> np.uint32(8))
    joined, zeros = states[:lanes], states[lanes:]
    while len(joined) > 1:
        joined = _after_zeros(joined[0::2], zeros) ^ joined[1::2]
        zeros = _after_zeros(zeros, zeros)
    return int(joined[0])


def _after_zeros(states: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """The states after a run of zeros of which `zeros` holds what it makes of each single bit."""
    result = np.zeros_like(states)
    for bit in range(32):
        result ^= ((states >> np.uint32(bit)) & np.uint32(1)) * zeros[bit]
    return result


@cache
def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(
            values & np.uint32(1), (values >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), values >> np.uint32(1)
        )
    return values
