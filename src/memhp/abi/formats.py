"""How the files spell things: parsers and formatters, the former as strict or as lax as the kernel's."""

from __future__ import annotations

import re

from memhp.errors import InvalidInput

__all__ = ["parse_bool", "parse_hex", "parse_uint", "sysfs_word"]

_TRUE = frozenset("yYtT1")
_FALSE = frozenset("nNfF0")
_UINT = re.compile(r"\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")


def sysfs_word(text: str) -> str:
    """Give the word that a write means: up to the first NUL, without one trailing newline (``sysfs_streq``)."""
    word = text.partition("\0")[0]
    return word.removesuffix("\n")


def parse_bool(text: str, where: str) -> bool:
    """Read a bool as ``kstrtobool`` does: by the first character, or the first two of on and off; the rest is ignored.

    Raises:
        InvalidInput: it begins with something else.
    """
    if text[:1] in _TRUE and text:
        return True
    if text[:1] in _FALSE and text:
        return False
    if text[:1] in {"o", "O"} and text[1:2] in {"n", "N", "f", "F"} and len(text) > 1:
        return text[1] in "nN"
    raise InvalidInput(text, where, "a bool: y, t, 1, on or n, f, 0, off")


def parse_uint(text: str, where: str) -> int:
    """Read an unsigned number with base auto (``0x10``, ``020`` and ``16`` are the same), one newline allowed.

    Raises:
        InvalidInput: not such a number.
    """
    match = _UINT.fullmatch(text.removesuffix("\n"))
    if not match:
        raise InvalidInput(text, where, "an unsigned number, decimal, 0x… or 0…")
    digits = match[1]
    if digits[:2] in {"0x", "0X"}:
        return int(digits, 16)
    return int(digits, 8) if digits[0] == "0" and len(digits) > 1 else int(digits)


def parse_hex(text: str, where: str) -> int:
    """Read a hexadecimal number without ``0x``, as ``block_size_bytes`` and ``phys_index`` have it.

    Raises:
        InvalidInput: not such a number.
    """
    if not re.fullmatch(r"[0-9a-fA-F]+\s*", text):
        raise InvalidInput(text, where, "a hexadecimal number")
    return int(text, 16)
