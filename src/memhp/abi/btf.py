"""The running kernel's own description of its types (``/sys/kernel/btf/vmlinux``), as far as tracing needs it.

Documentation/bpf/btf.rst describes the format: a header, a table of types of varying length, and a table of names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from memhp.errors import InvalidInput

__all__ = ["BTF", "enumerators", "members"]

BTF = "/sys/kernel/btf/vmlinux"
_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM, _ENUM64 = 4, 5, 6, 19
# How many bytes follow a type: (fixed, for each of its vlen parts), by kind.
_TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}


def members(data: bytes, name: str) -> dict[str, int] | None:
    """Give the members of a structure with their offsets in bytes; None if the kernel has no such structure.

    Raises:
        InvalidInput: no BTF.
    """
    names = _Names(data)
    for kind, vlen, name_at, flag, tail in _types(data):
        if kind == _STRUCT and names[name_at] == name:
            parts = struct.iter_unpack("<III", data[tail : tail + 12 * vlen])
            return {names[at]: (bits & 0xFFFFFF if flag else bits) // 8 for at, _, bits in parts}
    return None


def enumerators(data: bytes, one: str) -> dict[str, int] | None:
    """Give the values of the enumeration that ``one`` belongs to; None if the kernel has none (it may be a macro).

    Raises:
        InvalidInput: no BTF.
    """
    names = _Names(data)
    for kind, vlen, _, _, tail in _types(data):
        if kind == _ENUM:
            found = {names[at]: value for at, value in struct.iter_unpack("<Ii", data[tail : tail + 8 * vlen])}
            if one in found:
                return found
    return None


class _Names:
    def __init__(self, data: bytes) -> None:
        self._data = data
        _, self._begin = _sections(data)

    def __getitem__(self, at: int) -> str:
        begin = self._begin + at
        return self._data[begin : self._data.index(b"\0", begin)].decode(errors="replace")


def _sections(data: bytes) -> tuple[tuple[int, int], int]:
    # Where the types begin and end, and where the names begin.
    if len(data) < 24:
        raise InvalidInput(len(data), BTF, "BTF, with a header of 24 bytes")
    magic, _, _, head, types, length, names, _ = struct.unpack_from("<HBBIIIII", data)
    if magic != _MAGIC or head + types + length > len(data) or head + names > len(data):
        raise InvalidInput(f"{magic:#x}", BTF, f"BTF of this machine's byte order, which begins with {_MAGIC:#x}")
    return (head + types, head + types + length), head + names


def _types(data: bytes) -> Iterator[tuple[int, int, int, bool, int]]:
    (at, end), _ = _sections(data)
    unpack = struct.Struct("<III").unpack_from
    while at < end:
        name, info, _ = unpack(data, at)
        kind, vlen = info >> 24 & 31, info & 0xFFFF
        fixed, each = _TAIL.get(kind, (0, 0))
        yield kind, vlen, name, bool(info >> 31), at + 12
        at += 12 + fixed + each * vlen
