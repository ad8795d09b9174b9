"""How the files spell things: parsers and formatters, the former as strict or as lax as the kernel's."""

from __future__ import annotations

import re

from memhp.errors import InvalidInput

__all__ = ["OVERFLOW", "leading_uint", "parse_bool", "parse_hex", "parse_uint", "sysfs_word"]

OVERFLOW = 1 << 64
"""What stands for every number of more than 64 bits."""

_TRUE = frozenset("yYtT1")
_FALSE = frozenset("nNfF0")
_DIGITS = {
    0: re.compile(r"(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))"),
    10: re.compile(r"0*(?P<decimal>[0-9]+)"),
    16: re.compile(r"(?:0[xX])?(?P<hex>[0-9a-fA-F]+)"),
}
_BASES = {"hex": 16, "octal": 8, "decimal": 10}
_MOST_DIGITS = 20  # of a decimal number of 64 bits; Python refuses to read some thousands


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


def leading_uint(text: str, base: int = 0) -> tuple[int | None, str]:
    """Read the digits that a text begins with, by ``base`` 10, 16 or 0, which is auto; gives what follows them, too.

    The number is None if there is no digit, and OVERFLOW if it has more than 64 bits (``_parse_integer``).
    """
    digits = text.removeprefix("+")
    match = _DIGITS[base].match(digits)
    if match is None:
        return None, text
    kind = str(match.lastgroup)
    too_long = kind == "decimal" and len(match[kind]) > _MOST_DIGITS
    return OVERFLOW if too_long else min(int(match[kind], _BASES[kind]), OVERFLOW), digits[match.end() :]


def parse_uint(text: str, where: str) -> int:
    """Read an unsigned number with base auto (``0x10``, ``020`` and ``16`` are the same), one newline allowed.

    Raises:
        InvalidInput: not such a number, or it has more than 64 bits.
    """
    number, rest = leading_uint(text)
    if number is None or number == OVERFLOW or rest not in {"", "\n"}:
        raise InvalidInput(text, where, "an unsigned number, decimal, 0x… or 0…")
    return number


def parse_hex(text: str, where: str) -> int:
    """Read a hexadecimal number without ``0x``, as ``block_size_bytes`` and ``phys_index`` have it.

    Raises:
        InvalidInput: not such a number.
    """
    if not re.fullmatch(r"[0-9a-fA-F]+\s*", text):
        raise InvalidInput(text, where, "a hexadecimal number")
    return int(text, 16)
