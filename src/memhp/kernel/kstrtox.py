"""Numbers as the kernel's handlers read them (``lib/kstrtox.c``): base auto, one newline allowed, up to the first NUL."""

from __future__ import annotations

import errno
import re

from memhp.abi.formats import parse_uint
from memhp.errors import HotplugError, InvalidInput

__all__ = ["kstrtoint", "kstrtoull"]


def kstrtoull(text: str, where: str, bits: int = 64) -> int:
    """Read an unsigned number of so many bits.

    Raises:
        HotplugError: ERANGE, it does not fit.
        InvalidInput: not such a number.
    """
    number = parse_uint(text.partition("\0")[0], where)
    if number >= 1 << bits:
        raise HotplugError(errno.ERANGE, f"{where}: {number} does not fit in {bits} bits")
    return number


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
        raise HotplugError(errno.ERANGE, f"{where}: {text} does not fit in {bits} bits")
    return number
