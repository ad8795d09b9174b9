"""Numbers as the kernel's handlers read them (``lib/kstrtox.c``): base auto, one newline allowed, up to the first NUL."""

from __future__ import annotations

import errno
import re

from memhp.abi.formats import parse_uint
from memhp.errors import HotplugError, InvalidInput

__all__ = ["kstrtoint", "kstrtoull"]


_HEX = re.compile(r"\+?(?:0[xX])?([0-9a-fA-F]+)\n?")
_SHOWN = 40


def kstrtoull(text: str, where: str, bits: int = 64, *, base: int = 0) -> int:
    """Read an unsigned number of so many bits, with base auto or 16.

    Raises:
        HotplugError: ERANGE, it does not fit.
        InvalidInput: not such a number.
    """
    word = text.partition("\0")[0]
    number = _hexadecimal(word, where) if base == 16 else parse_uint(word, where)
    if number >= 1 << bits:
        raise HotplugError(errno.ERANGE, f"{where}: {word[:_SHOWN]!r} does not fit in {bits} bits")
    return number


def _hexadecimal(text: str, where: str) -> int:
    match = _HEX.fullmatch(text)
    if match is None:
        raise InvalidInput(text, where, "a hexadecimal number")
    return int(match[1], 16)


def kstrtoint(text: str, where: str, bits: int = 32) -> int:
    """Read a signed number of so many bits.

    Raises:
        HotplugError: EINVAL, not such a number; ERANGE, it does not fit.
    """
    text = text.partition("\0")[0]
    if not re.match(r"[+-]?[0-9]", text):
        raise HotplugError(errno.EINVAL, f"{text!r} is no value for {where}; expected a number")
    digits = text[1:] if text[0] in "+-" else text
    try:
        number = parse_uint(digits, where)
    except InvalidInput as error:
        raise HotplugError(errno.EINVAL, f"{text!r} is no value for {where}; expected {error.expected}") from None
    number = -number if text[0] == "-" else number
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise HotplugError(errno.ERANGE, f"{where}: {text[:_SHOWN]!r} does not fit in {bits} bits")
    return number
