"""Uevents as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memhp import InvalidInput
from memhp.abi.uevent import Uevent

# As recorded from Linux 6.1 when a DIMM was plugged.
ADDED = (
    b"add@/devices/system/memory/memory32\0ACTION=add\0DEVPATH=/devices/system/memory/memory32\0SUBSYSTEM=memory\0SEQNUM=568\0"
)


@pytest.mark.fact("5.12")
def test_a_uevent_goes_over_netlink_as_the_kernel_sends_it() -> None:
    """A header, then ACTION, DEVPATH, SUBSYSTEM and SEQNUM in this order, each ended by a NUL."""
    event = Uevent("add", "/devices/system/memory/memory32", "memory", 568)
    assert (event.encode(), str(event)) == (ADDED, "add@/devices/system/memory/memory32")


@pytest.mark.fact("5.12")
def test_a_uevent_of_the_kernel_is_read() -> None:
    """The recorded message gives its fields."""
    event = Uevent.decode(ADDED)
    assert (event.action, event.devpath, event.subsystem, event.seqnum, event.extra) == (
        "add",
        "/devices/system/memory/memory32",
        "memory",
        568,
        (),
    )


def test_further_keys_stand_before_the_sequence_number() -> None:
    """The kernel adds SEQNUM last (lib/kobject_uevent.c), and what else a driver says keeps its order."""
    event = Uevent("change", "/d", "memory", 1, (("B", "x=y"), ("A", "")))
    message = b"change@/d\0ACTION=change\0DEVPATH=/d\0SUBSYSTEM=memory\0B=x=y\0A=\0SEQNUM=1\0"
    assert (event.encode(), Uevent.decode(message)) == (message, event)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
KEYS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1).filter(
    lambda key: key not in {"ACTION", "DEVPATH", "SUBSYSTEM", "SEQNUM"}
)


@given(TEXT, TEXT, TEXT, st.integers(0, 2**64 - 1), st.dictionaries(KEYS, TEXT))
def test_any_uevent_survives_the_wire(action: str, devpath: str, subsystem: str, seqnum: int, extra: dict[str, str]) -> None:
    """What is sent is what is received."""
    event = Uevent(action, devpath, subsystem, seqnum, tuple(extra.items()))
    assert Uevent.decode(event.encode()) == event


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (b"", "ACTION"),
        (b"add@/d\0", "ACTION"),
        (b"ACTION=add\0DEVPATH=/d\0SUBSYSTEM=memory\0SEQNUM=1\0", "ACTION"),
        (b"add@/d\0ACTION=add\0SUBSYSTEM=memory\0SEQNUM=1\0", "DEVPATH"),
        (b"add@/d\0ACTION=add\0DEVPATH=/d\0SEQNUM=1\0", "SUBSYSTEM"),
        (b"add@/d\0ACTION=add\0DEVPATH=/d\0SUBSYSTEM=memory\0", "SEQNUM"),
        (b"add@/d\0ACTION=add\0DEVPATH=/d\0SUBSYSTEM=memory\0SEQNUM=many\0", "many"),
        (b"\xff\xfe\0\xff", "ACTION"),
    ],
)
def test_what_is_no_uevent_is_refused(message: bytes, fault: str) -> None:
    """A message without its keys, or whose number is none, is invalid input that names what is wrong."""
    with pytest.raises(InvalidInput, match=fault) as caught:
        Uevent.decode(message)
    assert (caught.value.value, caught.value.where) == (message, "uevent")
