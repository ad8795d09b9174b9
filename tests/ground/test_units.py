"""Numbers of memory and their text."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memhp import InvalidInput
from memhp.units import (
    PAGE_SHIFT,
    PAGE_SIZE,
    SECTION_SIZE,
    Pfn,
    PhysAddr,
    SectionNr,
    addr_to_pfn,
    format_ids,
    format_mem,
    format_size,
    parse_ids,
    parse_size,
    pfn_to_addr,
    pfn_to_section_nr,
    section_nr_to_pfn,
    whole_number,
)


def test_the_sizes_are_those_of_x86_64() -> None:
    """Pages are 4 KiB and sections 128 MiB (arch/x86/include/asm/sparsemem.h: SECTION_SIZE_BITS 27)."""
    assert (PAGE_SHIFT, PAGE_SIZE, SECTION_SIZE) == (12, 4096, 0x8000000)


@pytest.mark.parametrize(
    ("address", "pfn", "section"),
    [(0, 0, 0), (0xFFF, 0, 0), (0x1000, 1, 0), (0x7FFFFFF, 0x7FFF, 0), (0x8000000, 0x8000, 1), (0x100000000, 0x100000, 32)],
)
def test_an_address_is_in_its_page_and_section(address: int, pfn: int, section: int) -> None:
    """Addresses are rounded down to the page, pages to the section."""
    assert addr_to_pfn(PhysAddr(address)) == pfn
    assert pfn_to_section_nr(Pfn(pfn)) == section


def test_pages_and_sections_begin_where_they_should() -> None:
    """The way back gives the first byte of a page and the first page of a section."""
    assert (pfn_to_addr(Pfn(0x100000)), section_nr_to_pfn(SectionNr(32))) == (0x100000000, 0x100000)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("512B", 512),
        ("0", 0),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("128M", 134217728),
        ("128MiB", 134217728),
        ("128 mib", 134217728),
        (" 4GiB\n", 4294967296),
        ("1.5 GiB", 1610612736),
        ("0.5K", 512),
        ("2T", 2199023255552),
        ("1PiB", 1125899906842624),
        ("0x8000000", 134217728),
        ("0X1f", 31),
    ],
)
def test_a_size_is_read_in_bytes(text: object, size: int) -> None:
    """Letters are powers of 1024 in any case, with or without iB, and fractions are allowed."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "G",
        "4GB",
        "4 kb",
        "4X",
        "-1",
        "- 1G",
        "1.5",
        "1.3K",
        ".5G",
        "1.G",
        "1,5G",
        "1e9",
        "0x",
        "4G4",
        "4iB",
        "16384P",
        "٤G",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """Decimal units, half bytes and signs are refused, and the error names place, value and a right one."""
    with pytest.raises(InvalidInput) as caught:
        parse_size(text, "nodes[0]")
    assert (caught.value.value, caught.value.where) == (text, "nodes[0]")
    assert str(caught.value) == f"nodes[0]: {text!r} is not valid; expected a size such as 128MiB, 4G or a number of bytes"


@pytest.mark.parametrize(
    "size", ["9" * 5000, "0." + "5" * 5000 + "G", "0x1" + "0" * 5000, 1 << 64, pytest.param(10**5000, id="long")]
)
def test_a_size_of_more_than_64_bits_is_refused(size: object) -> None:
    """However long it is: Python's own limit of digits is not seen, in the error neither."""
    with pytest.raises(InvalidInput) as caught:
        parse_size(size)
    assert str(caught.value).startswith("size: ")
    with pytest.raises(InvalidInput):
        parse_ids(f"1-{size:x}" if isinstance(size, int) else size)


@given(st.integers(0, 1 << 30), st.sampled_from([("", 0), ("B", 0), ("K", 10), ("MiB", 20), ("g", 30), (" TiB", 40), ("p", 50)]))
def test_any_whole_number_of_any_unit_is_read(number: int, unit: tuple[str, int]) -> None:
    """A number with a unit is the number shifted by the unit's power of two, up to 64 bits."""
    assume(number << unit[1] < 1 << 64)
    assert parse_size(f"{number}{unit[0]}") == number << unit[1]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1025, "1025 B"),
        (4096, "4 KiB"),
        (134217728, "128 MiB"),
        (1610612736, "1536 MiB"),
        (1 << 32, "4 GiB"),
        (1 << 40, "1 TiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_a_size_is_written_with_the_largest_unit_that_keeps_it_whole(size: int, text: str) -> None:
    """1.5 GiB is 1536 MiB: no fraction is ever written."""
    assert format_size(size) == text


@given(st.integers(0, 1 << 62))
def test_a_size_survives_writing_and_reading(size: int) -> None:
    """What is written is read as the same number."""
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("pfn", "pages", "text"),
    [
        (0x100000, 0x8000, "[mem 0x100000000-0x107ffffff]"),
        (0x8000, 0x8000, "[mem 0x08000000-0x0fffffff]"),
        (0, 1, "[mem 0x00000000-0x00000fff]"),
        (0xF8000, 0x10000, "[mem 0xf8000000-0x107ffffff]"),
        (0x1000000, 0x8000, "[mem 0x1000000000-0x1007ffffff]"),
    ],
)
def test_a_range_is_written_as_the_kernels_log_writes_it(pfn: int, pages: int, text: str) -> None:
    """The kernel prints ``[mem %#010llx-%#010llx]``, the last byte included (mm/memory_hotplug.c: offline_pages)."""
    assert format_mem(Pfn(pfn), pages) == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" \n", []),
        ("7", [7]),
        (7, [7]),
        ("32-35,40", [32, 33, 34, 35, 40]),
        ("40,32-35\n", [32, 33, 34, 35, 40]),
        (" 1 - 2 , 5 ", [1, 2, 5]),
        ("3-3", [3]),
    ],
)
def test_a_list_of_numbers_is_read_in_the_kernels_format(text: object, ids: list[int]) -> None:
    """Ranges and numbers in any order give the numbers, ascending."""
    assert parse_ids(text) == ids


@pytest.mark.parametrize(
    "text",
    ["a", "1,", ",1", "1,,2", "2-1", "1-", "-1", "1--2", "1-2-3", "1 2", "1,1", "1-3,2", "0x10", "0-99999999", "1.5"],
)
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    """Backward and endless ranges, repeats, and empty places are refused with place and value."""
    with pytest.raises(InvalidInput) as caught:
        parse_ids(text, "step 3")
    assert (caught.value.value, caught.value.where) == (text, "step 3")
    assert str(caught.value).startswith(f"step 3: {text!r} is not valid; expected numbers and ranges")


@pytest.mark.parametrize(
    ("ids", "text"),
    [([], ""), ([5], "5"), ([0, 1, 3], "0-1,3"), ([40, 33, 32, 34, 35], "32-35,40"), ([1, 3, 5], "1,3,5")],
)
def test_a_list_of_numbers_is_written_in_the_kernels_format(ids: list[int], text: str) -> None:
    """Neighbours become a range, in ascending order, whatever the order given (/sys/devices/system/node/online)."""
    assert format_ids(ids) == text


def test_a_number_that_is_given_twice_is_written_once() -> None:
    """A list names each number once, or it could not be read again."""
    assert format_ids([1, 1, 2]) == "1-2"


def naive(text: str) -> list[int]:
    """Read the kernel's format by hand."""
    ids: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


@given(st.sets(st.integers(0, 200)))
def test_any_set_of_numbers_survives_writing_and_reading(ids: set[int]) -> None:
    """What is written holds exactly the numbers, by a naive reader and by ours, in as few parts as can be."""
    text = format_ids(ids)
    assert naive(text) == parse_ids(text) == sorted(ids)
    assert len([part for part in text.split(",") if part]) == len([number for number in ids if number - 1 not in ids])


@pytest.mark.parametrize("value", [-1, True, None, 4.0, b"4", [1, 2]])
def test_other_types_and_negative_numbers_are_neither_sizes_nor_lists(value: object) -> None:
    """A bool is no number, a float no size, and nothing is guessed from bytes."""
    for parse in (parse_size, parse_ids):
        with pytest.raises(InvalidInput) as caught:
            parse(value, "step 3")
        assert (caught.value.value, caught.value.where) == (value, "step 3")


@pytest.mark.parametrize("value", [1 << 128, -(1 << 128), pytest.param(10**5000, id="long"), True, 1.0, None, "1"])
def test_what_is_no_number_or_far_too_long_is_refused(value: object) -> None:
    """What is only too large for an address is given as it is: who asks for a number says what its limits are."""
    with pytest.raises(InvalidInput) as caught:
        whole_number(value, "start")
    assert caught.value.where == "start"
    assert [whole_number(number, "start") for number in (1 << 64, -1)] == [1 << 64, -1]
