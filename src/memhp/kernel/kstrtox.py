"""Numbers as the kernel's handlers read them (``lib/kstrtox.c``): base auto, one newline allowed, up to the first NUL.

What is too large for 64 bits is found before what follows the digits, and what is too large for fewer bits after it.
"""

from __future__ import annotations

import errno

from memhp.abi.formats import OVERFLOW, leading_uint
from memhp.errors import HotplugError, InvalidInput

__all__ = ["kstrtoint", "kstrtoull"]

_EXPECTED = {0: "an unsigned number, decimal, 0x… or 0…", 10: "a decimal number", 16: "a hexadecimal number"}
_SHOWN = 40


def kstrtoull(text: str, where: str, bits: int = 64, *, base: int = 0) -> int:
    """Read an unsigned number of so many bits, with base auto, 10 or 16.

    Raises:
        HotplugError: ERANGE, it does not fit.
        InvalidInput: not such a number.
    """
    word = text.partition("\0")[0]
    number, rest = leading_uint(word, base)
    if number == OVERFLOW:
        raise _out_of_range(word, where, bits)
    if number is None or rest not in {"", "\n"}:
        raise InvalidInput(text, where, _EXPECTED[base])
    if number >= 1 << bits:
        raise _out_of_range(word, where, bits)
    return number


def kstrtoint(text: str, where: str, bits: int = 32) -> int:
    """Read a signed number of so many bits.

    Raises:
        HotplugError: EINVAL, not such a number; ERANGE, it does not fit.
    """
    word = text.partition("\0")[0]
    negative = word.startswith("-")
    try:
        if word.startswith("-+"):
            raise InvalidInput(word, where, "a number")
        number = kstrtoull(word.removeprefix("-"), where)
    except InvalidInput as error:
        raise HotplugError(errno.EINVAL, f"{_shown(word)} is no value for {where}; expected a number") from error
    number = -number if negative else number
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise _out_of_range(word, where, bits)
    return number


def _out_of_range(word: str, where: str, bits: int) -> HotplugError:
    return HotplugError(errno.ERANGE, f"{where}: {_shown(word)} does not fit in {bits} bits")


def _shown(word: str) -> str:
    return repr(word[:_SHOWN])
