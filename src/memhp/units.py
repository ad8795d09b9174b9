"""Numbers of memory: distinct types for page frames, sections, blocks and bytes, and their text.

Mixing these is *the* bug of this field, so each is a type of its own and is converted only by a named function.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NewType

from memhp.errors import InvalidInput

__all__ = [
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "SECTION_SIZE",
    "SUBSECTION_SIZE",
    "BlockId",
    "Pfn",
    "PhysAddr",
    "SectionNr",
    "addr_to_pfn",
    "format_ids",
    "format_mem",
    "format_size",
    "lowest_free",
    "parse_ids",
    "parse_size",
    "pfn_to_addr",
    "pfn_to_section_nr",
    "section_nr_to_pfn",
    "whole_number",
]

Pfn = NewType("Pfn", int)
SectionNr = NewType("SectionNr", int)
BlockId = NewType("BlockId", int)
PhysAddr = NewType("PhysAddr", int)

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
SECTION_SIZE = 128 << 20
SUBSECTION_SIZE = 2 << 20
"""Bytes that memory without a block, such as a device's, is made of."""
PAGES_PER_SECTION = SECTION_SIZE >> PAGE_SHIFT

_MOST_BITS = 128  # far more than any address; a number of some thousands of digits could not even be written in an error
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
# 20 digits are what 64 bits have; Python refuses to read some thousands.
_SIZE = re.compile(r"\s*([0-9]{1,20})(?:\.([0-9]{1,20}))?\s*(?:([KMGTP])(?:iB)?|B)?\s*", re.IGNORECASE)
_DECIMAL = re.compile(r"\s*[0-9.]+\s*[KMGTP]B\s*", re.IGNORECASE)
_IDS = re.compile(r"\s*([0-9]{1,20})\s*(?:-\s*([0-9]{1,20})\s*)?")


def whole_number(value: object, where: str, expected: str = "a number of bytes") -> int:
    """Give a number that a caller has passed, as it is.

    Raises:
        InvalidInput: it is none, or one of more than 128 bits. What is beyond 64 is left to whoever knows its limits.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > _MOST_BITS:
        raise InvalidInput(value, where, expected)
    return value


def lowest_free(taken: Collection[object]) -> int:
    """Give the lowest number from 0 on that is not taken, as the kernel's ida_alloc() does."""
    return next(number for number in range(len(taken) + 1) if number not in taken)


def pfn_to_addr(pfn: Pfn) -> PhysAddr:
    """Give the physical byte address at which the page frame begins."""
    return PhysAddr(pfn << PAGE_SHIFT)


def addr_to_pfn(addr: PhysAddr) -> Pfn:
    """Give the page frame that holds the byte at ``addr`` (rounded down)."""
    return Pfn(addr >> PAGE_SHIFT)


def pfn_to_section_nr(pfn: Pfn) -> SectionNr:
    """Give the 128 MiB section that holds the page frame (x86-64)."""
    return SectionNr(pfn // PAGES_PER_SECTION)


def section_nr_to_pfn(nr: SectionNr) -> Pfn:
    """Give the first page frame of the section."""
    return Pfn(nr * PAGES_PER_SECTION)


def parse_size(value: object, where: str = "size") -> int:
    """Read a size in bytes: a plain number of bytes, or text such as ``4GiB``, ``128M``, ``1.5 GiB``, ``0x8000000``.

    K, M, G, T and P are powers of 1024, with or without ``iB``. Decimal units (``GB``) are refused because memory
    blocks never are such sizes.

    Raises:
        InvalidInput: not a size, negative, not a whole number of bytes, or more than 64 bits have.
    """
    size = (
        value if isinstance(value, int) and not isinstance(value, bool) else _size_of(value) if isinstance(value, str) else None
    )
    if size is None or not 0 <= size < 1 << 64:
        raise InvalidInput(value, where, "a size such as 128MiB, 4G or a number of bytes")
    return int(size)


def _size_of(text: str) -> int | None:
    if re.fullmatch(r"\s*0[xX][0-9a-fA-F]+\s*", text):
        return int(text, 16)
    match = None if _DECIMAL.fullmatch(text) else _SIZE.fullmatch(text)
    if match is None:
        return None
    whole, fraction, unit = match.groups()
    unit_bytes = _UNITS[(unit or "").upper()]
    part, rest = divmod(int(fraction or 0) * unit_bytes, int(10 ** len(fraction or "")))
    return int(whole) * unit_bytes + part if rest == 0 else None


def format_size(size: int) -> str:
    """Write a number of bytes with the largest binary unit that keeps it a whole number: ``128 MiB``."""
    for unit in ("P", "T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]} {unit}iB"
    return f"{size} B"


def format_mem(start: Pfn, nr_pages: int) -> str:
    """Write a page range the way the kernel's log does: ``[mem 0x100000000-0x107ffffff]``."""
    first = pfn_to_addr(start)
    return f"[mem {first:#010x}-{first + nr_pages * PAGE_SIZE - 1:#010x}]"


def parse_ids(value: object, where: str = "blocks") -> list[int]:
    """Read a list of numbers in the kernel's list format, ``32-35,40``, ascending and without repeats.

    Raises:
        InvalidInput: not such a list, a range that runs backwards, or a number named twice.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return [value]
    expected = "numbers and ranges such as 32-35,40, each number once"
    if not isinstance(value, str):
        raise InvalidInput(value, where, expected)
    found: list[int] = []
    for part in value.split(",") if value.strip() else []:
        match = _IDS.fullmatch(part)
        if not match:
            raise InvalidInput(value, where, expected)
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first or last - first > 1 << 24:
            raise InvalidInput(value, where, expected)
        found.extend(range(first, last + 1))
    if len(set(found)) != len(found):
        raise InvalidInput(value, where, expected)
    return sorted(found)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for number in sorted(set(numbers)):
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


def format_ids(numbers: Iterable[int]) -> str:
    """Write numbers in the kernel's list format (``0-1,3``), each once; nothing gives the empty text."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in _runs(numbers))
