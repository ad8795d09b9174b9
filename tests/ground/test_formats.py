"""What the kernel takes for a word, a bool and a number.

The tables are writes to a real Linux 6.1 (6.1.0-56-cloud-amd64 in QEMU) and what came of them, recorded in the lab:
the text, and what the parameter read afterwards or the errno.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memhp import InvalidInput
from memhp.abi.formats import parse_bool, parse_hex, parse_uint, sysfs_word

EINVAL = None

# Writes to /sys/module/memory_hotplug/parameters/auto_movable_numa_aware.
BOOLS: list[tuple[str, bool | None]] = [
    ("Y\n", True),
    ("y\n", True),
    ("1\n", True),
    ("t\n", True),
    ("T\n", True),
    ("true\n", True),
    ("on\n", True),
    ("oN\n", True),
    ("ON\n", True),
    ("o\n", EINVAL),
    ("foo\n", False),
    ("n\n", False),
    ("N\n", False),
    ("0\n", False),
    ("f\n", False),
    ("off\n", False),
    ("of\n", False),
    ("\n", EINVAL),
    ("2\n", EINVAL),
    (" y\n", EINVAL),
    ("yes\n", True),
    ("No way\n", False),
    ("10\n", True),
    ("Y", True),
    ("x\n", EINVAL),
]

# Writes to /sys/module/memory_hotplug/parameters/auto_movable_ratio.
UINTS: list[tuple[str, int | None]] = [
    ("0\n", 0),
    ("301\n", 301),
    ("0x10\n", 16),
    ("010\n", 8),
    ("08\n", EINVAL),
    ("-1\n", EINVAL),
    ("+5\n", 5),
    ("4294967295\n", 4294967295),
    ("foo\n", EINVAL),
    ("\n", EINVAL),
    (" 7\n", EINVAL),
    ("7 \n", EINVAL),
    ("7\n\n", EINVAL),
    ("7", 7),
    ("0b11\n", EINVAL),
    ("7.5\n", EINVAL),
    ("0x\n", EINVAL),
    ("0xg\n", EINVAL),
    ("-0\n", EINVAL),
]

# Writes to /sys/module/memory_hotplug/parameters/online_policy and /sys/devices/system/memory/auto_online_blocks, and
# whether the kernel knew the word.
WORDS: list[tuple[str, bool]] = [
    ("auto-movable\n", True),
    ("contig-zones\n", True),
    ("auto-movable", True),
    ("contig\n", False),
    ("Contig-zones\n", False),
    (" contig-zones\n", False),
    ("contig-zones \n", False),
    ("contig-zones\n\n", False),
    ("auto-movable\0x", True),
    ("1\n", False),
    ("auto_movable\n", False),
    ("\n", False),
    ("auto-movable\njunk", False),
    ("online\n", True),
    ("online_kernel\n", True),
    ("online_movable\n", True),
    ("offline\n", True),
    ("online", True),
    ("Online\n", False),
    (" online\n", False),
    ("online \n", False),
    ("online\n\n", False),
    ("going-offline\n", False),
    ("online\0junk", True),
    ("offline\0", True),
    ("online_\n", False),
    ("onlinee\n", False),
]
KNOWN = {"auto-movable", "contig-zones", "offline", "online", "online_kernel", "online_movable"}


@pytest.mark.fact("5.8")
@pytest.mark.parametrize(("text", "value"), BOOLS)
def test_a_bool_is_read_as_the_kernel_reads_it(text: str, value: bool | None) -> None:  # noqa: FBT001 - a table of bools
    """The first character decides, or the first two of on and off; so ``foo`` is no, and ``o`` alone is nothing."""
    if value is EINVAL:
        with pytest.raises(InvalidInput) as caught:
            parse_bool(text, "auto_movable_numa_aware")
        assert (caught.value.value, caught.value.where) == (text, "auto_movable_numa_aware")
    else:
        assert parse_bool(text, "auto_movable_numa_aware") is value


@pytest.mark.fact("5.8")
@pytest.mark.parametrize(("text", "value"), UINTS)
def test_a_number_is_read_as_the_kernel_reads_it(text: str, value: int | None) -> None:
    """The base is found from the digits, a plus and one newline are allowed, anything else is not."""
    if value is EINVAL:
        with pytest.raises(InvalidInput) as caught:
            parse_uint(text, "auto_movable_ratio")
        assert (caught.value.value, caught.value.where) == (text, "auto_movable_ratio")
    else:
        assert parse_uint(text, "auto_movable_ratio") == value


@pytest.mark.fact("5.4", "5.19")
@pytest.mark.parametrize(("text", "known"), WORDS)
def test_a_word_is_what_stands_before_a_nul_less_one_newline(text: str, known: bool) -> None:  # noqa: FBT001 - as above
    """A write means one of the words exactly when the real kernel took it for one."""
    assert (sysfs_word(text) in KNOWN) is known


@pytest.mark.parametrize(("text", "word"), [("online\n", "online"), ("a\n\n", "a\n"), ("a\n\0b", "a"), ("", ""), ("\0", "")])
def test_a_word_loses_its_nul_first_and_its_newline_then(text: str, word: str) -> None:
    """The compare is on C strings: what follows a NUL is not there, and one newline before it is forgiven."""
    assert sysfs_word(text) == word


@pytest.mark.parametrize("text", ["", "٣", "0x1_0", "1_0", "++1", "0X1G", "1\r\n"])
def test_python_is_not_more_lenient_than_the_kernel(text: str) -> None:
    """Nothing is a number only because Python's int() would take it."""
    with pytest.raises(InvalidInput):
        parse_uint(text, "x")


def test_an_empty_text_is_no_bool() -> None:
    """kstrtobool of an empty string is EINVAL."""
    with pytest.raises(InvalidInput):
        parse_bool("", "x")


@pytest.mark.parametrize("text", [str(2**64), hex(2**64), "9" * 5000, "0" + "7" * 5000, "0x" + "f" * 5000])
def test_a_number_of_more_than_64_bits_is_none(text: str) -> None:
    """However long it is; Python's own limit of digits is not seen."""
    with pytest.raises(InvalidInput):
        parse_uint(text, "x")


@given(st.integers(0, 2**64 - 1))
def test_any_number_is_read_in_the_three_bases(number: int) -> None:
    """Decimal, hexadecimal and octal spell the same number."""
    assert [parse_uint(text, "x") for text in (f"{number}\n", f"{number:#x}\n", f"0{number:o}\n")] == [number] * 3


@pytest.mark.fact("5.3")
@pytest.mark.parametrize(("text", "value"), [("8000000\n", 0x8000000), ("00000020\n", 0x20), ("ABC", 0xABC), ("0", 0)])
def test_a_hexadecimal_number_has_no_prefix(text: str, value: int) -> None:
    """``block_size_bytes`` is ``%lx`` and ``phys_index`` ``%08lx``."""
    assert parse_hex(text, "block_size_bytes") == value


@pytest.mark.parametrize("text", ["", "\n", "0x80", "g", "-1", "1 2", " 1", "1_0"])
def test_what_is_no_hexadecimal_number_is_refused(text: str) -> None:
    """Prefix, sign, spaces and underscores are refused with place and value."""
    with pytest.raises(InvalidInput) as caught:
        parse_hex(text, "phys_index")
    assert (caught.value.value, caught.value.where) == (text, "phys_index")
