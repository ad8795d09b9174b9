"""The files that the machine serves: names, modes, formats, errnos and uevents, as on a real kernel."""

from __future__ import annotations

import pytest

from memhp import (
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_PREPARE_ONLINE,
    NOTIFY_BAD,
    Machine,
    MemoryAction,
    NotifyResult,
    PageKind,
    Rules,
    notifier_from_errno,
)
from memhp.abi.uevent import Uevent
from support import (
    ALL,
    BLOCK,
    GIB,
    MEMORY,
    MIB,
    NODE,
    PARAMETERS,
    Boot,
    Log,
    in_thread,
    refusal,
    rounds,
    snapshot,
    state,
    three,
    tree_texts,
    until_parked,
    valid_zones,
    with_node_1,
    write,
)

FILES = pytest.mark.parametrize(("file", "on", "off"), [("state", "online", "offline"), ("online", "1", "0")])


# -- names and modes


@pytest.mark.fact("5.1")
@pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.DOCUMENTED])
def test_the_memory_directory_of_6_1(boot: Boot, rules: Rules) -> None:
    """Its files, their modes, and the blocks with decimal numbers."""
    machine = boot("384MiB", rules=rules)
    assert machine.tree.list(MEMORY) == sorted(
        ["auto_online_blocks", "block_size_bytes", "memory0", "memory1", "memory2", "power", "uevent"]
    )
    names = ["auto_online_blocks", "block_size_bytes", "uevent", "power", "memory1"]
    assert [oct(machine.tree.mode(f"{MEMORY}/{name}")) for name in names] == ["0o644", "0o444", "0o644", "0o755", "0o755"]


@pytest.mark.fact("5.1", "5.3")
def test_the_memory_directory_of_6_12_has_three_files_more(boot: Boot) -> None:
    """crash_hotplug can be read, and the two that take pages away be written."""
    machine = boot("128MiB", rules=Rules.LINUX_6_12)
    more = {"crash_hotplug": 0o444, "soft_offline_page": 0o200, "hard_offline_page": 0o200}
    assert machine.tree.list(MEMORY) == sorted(["auto_online_blocks", "block_size_bytes", "memory0", "power", "uevent", *more])
    assert {name: machine.tree.mode(f"{MEMORY}/{name}") for name in more} == more
    assert machine.tree.read(f"{MEMORY}/crash_hotplug") == "0\n"
    assert refusal(machine.tree.read, f"{MEMORY}/soft_offline_page") == "EACCES"


@ALL
@pytest.mark.fact("5.2")
def test_the_directory_of_a_block(boot: Boot, rules: Rules) -> None:
    """Files and modes, and links to its subsystem and its node, which links back."""
    machine = with_node_1(boot, rules)
    place = f"{MEMORY}/memory33"
    modes = {
        "state": 0o644,
        "online": 0o644,
        "phys_index": 0o444,
        "phys_device": 0o444,
        "removable": 0o444,
        "valid_zones": 0o444,
        "uevent": 0o644,
    }
    assert machine.tree.list(place) == sorted([*modes, "power", "subsystem", "node1"])
    assert {name: machine.tree.mode(f"{place}/{name}") for name in modes} == modes
    assert machine.tree.readlink(f"{place}/subsystem") == "../../../../bus/memory"
    assert machine.tree.readlink(f"{place}/node1") == "../../node/node1"
    assert machine.tree.readlink(f"{NODE}/node1/memory33") == "../../memory/memory33"
    assert "memory33" in machine.tree.list("/sys/bus/memory/devices")
    assert machine.tree.readlink("/sys/bus/memory/devices/memory33") == "../../../devices/system/memory/memory33"


@ALL
@pytest.mark.fact("5.2")
def test_links_can_be_followed(boot: Boot, rules: Rules) -> None:
    """The same block by its node, by the bus, and round in circles; writes go the same ways."""
    machine = with_node_1(boot, rules)
    assert machine.tree.read(f"{NODE}/node1/memory33/phys_index") == "00000021\n"
    assert machine.tree.read("/sys/bus/memory/devices/memory33/phys_index") == "00000021\n"
    assert machine.tree.read(f"{MEMORY}/memory32/node1/memory33/../memory33/node1/memory32/phys_index") == "00000020\n"
    assert machine.tree.write("/sys/bus/memory/devices/memory33/state", "online") == 6
    assert machine.tree.list(f"{MEMORY}/memory33/subsystem") == machine.tree.list("/sys/bus/memory")


@ALL
@pytest.mark.fact("5.2")
def test_a_walk_over_the_whole_tree_ends(boot: Boot, rules: Rules) -> None:
    """No directory contains itself, so that the tree can be copied; ``power`` has files only."""
    machine = with_node_1(boot, rules)
    for directory in (f"{MEMORY}/power", f"{MEMORY}/memory32/power", f"{NODE}/node1/power"):
        assert "power" not in machine.tree.list(directory)
    texts = tree_texts(machine)
    assert texts[f"{MEMORY}/memory35/state"] == "offline\n"
    assert len([path for path in texts if path.endswith("/state")]) == 12


@ALL
@pytest.mark.fact("5.2", "5.5", "5.18")
def test_a_file_that_is_read_only_can_not_be_opened_for_writing(boot: Boot, rules: Rules) -> None:
    """EACCES, also for root; so is reading one that can only be written."""
    machine = with_node_1(boot, rules)
    for name in ("phys_index", "phys_device", "removable", "valid_zones"):
        assert refusal(machine.tree.write, f"{MEMORY}/memory32/{name}", "1") == "EACCES"
    for path in (f"{MEMORY}/block_size_bytes", f"{NODE}/possible", f"{NODE}/has_memory", f"{PARAMETERS}/memmap_on_memory"):
        assert refusal(machine.tree.write, path, "1") == "EACCES"
    assert refusal(machine.tree.read, "/sys/bus/memory/uevent") == "EACCES"


@ALL
def test_paths_that_lead_nowhere_are_the_errors_of_open(boot: Boot, rules: Rules) -> None:
    """ENOENT, ENOTDIR, EISDIR; and listing or following what is a file."""
    machine = with_node_1(boot, rules)
    tree = machine.tree
    for path in (f"{MEMORY}/memory99/state", f"{MEMORY}/memory032/state", f"{MEMORY}/memory32/stat", f"{NODE}/node2", "/etc"):
        assert refusal(tree.read, path) == "ENOENT"
        assert not tree.exists(path)
    assert refusal(tree.read, f"{MEMORY}/memory32/state/x") == "ENOTDIR"
    assert refusal(tree.read, f"{MEMORY}/memory32") == "EISDIR"
    assert refusal(tree.write, f"{MEMORY}/memory32", "online") == "EISDIR"
    assert refusal(tree.list, f"{MEMORY}/memory32/state") == "ENOTDIR"
    assert refusal(tree.readlink, f"{MEMORY}/memory32/state") == "EINVAL"
    assert refusal(tree.readlink, f"{MEMORY}/memory32/nothing") == "ENOENT"


# -- formats


@ALL
@pytest.mark.fact("5.3")
def test_read_formats(boot: Boot, rules: Rules) -> None:
    """Lower hex without 0x for the block size, eight digits of hex for the block id, words, and a newline each."""
    machine = boot(["1GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    machine.add_memory(1, 0x1_7800_0000, BLOCK)
    read = machine.tree.read
    assert read(f"{MEMORY}/block_size_bytes") == "8000000\n"
    assert read(f"{MEMORY}/auto_online_blocks") == "offline\n"
    names = ("phys_index", "phys_device", "removable", "online", "state", "uevent")
    assert [read(f"{MEMORY}/memory47/{name}") for name in names] == ["0000002f\n", "0\n", "1\n", "0\n", "offline\n", ""]
    write(machine, "memory47/state", "online")
    assert [read(f"{MEMORY}/memory47/{name}") for name in names] == ["0000002f\n", "0\n", "1\n", "1\n", "online\n", ""]


@pytest.mark.fact("5.3", "5.16")
def test_the_block_size_is_that_of_the_machine(boot: Boot) -> None:
    """2 GiB is ``80000000``; the block id counts blocks, not sections."""
    machine = boot("4GiB", block_size="2GiB")
    assert machine.tree.read(f"{MEMORY}/block_size_bytes") == "80000000\n"
    assert machine.tree.read(f"{MEMORY}/memory2/phys_index") == "00000002\n"


@pytest.mark.fact("5.3", "0.2")
@pytest.mark.parametrize(
    ("rules", "word"), [(Rules.LINUX_6_1, "offline\n"), (Rules.LINUX_6_12, "online\n"), (Rules.DOCUMENTED, "offline\n")]
)
def test_auto_online_blocks_at_boot_is_the_kernel_s_default(boot: Boot, rules: Rules, word: str) -> None:
    """Debian's 6.1 leaves new memory offline, its 6.12 brings it online; so the same script diverges at once."""
    machine = boot(["1GiB", 0], rules=rules)
    assert machine.tree.read(f"{MEMORY}/auto_online_blocks") == word
    machine.add_memory(1, 4 * GIB, BLOCK)
    if word == "online\n":
        assert refusal(write, machine, "memory32/state", "online_movable") == "EINVAL"
        assert valid_zones(machine, 32) == "Normal"
    else:
        assert write(machine, "memory32/state", "online_movable") == 14
        assert valid_zones(machine, 32) == "Movable"


@ALL
@pytest.mark.fact("5.6", "5.7")
def test_valid_zones(boot: Boot, rules: Rules) -> None:
    """One name online, ``none`` for several zones, and two names, the default first, when not online."""
    machine = boot(["5GiB", 0], rules=rules, parameters={"memhp_default_state": "offline"})
    machine.add_memory(1, 8 * GIB, 3 * BLOCK)
    assert [valid_zones(machine, block) for block in (0, 1, 32)] == ["none", "DMA32", "Normal"]
    write(machine, "memory5/state", "offline")
    assert [valid_zones(machine, block) for block in (5, 64)] == ["DMA32 Movable", "Normal Movable"]
    write(machine, "memory64/state", "online_movable")
    write(machine, "memory66/state", "online_movable")
    assert [valid_zones(machine, block) for block in (64, 65)] == ["Movable", "Movable Normal"]


# -- what is accepted

WORDS = ["offline", "online", "online_kernel", "online_movable"]
NO_WORDS = [
    " online",
    "online ",
    "online\n\n",
    "Online",
    "ONLINE",
    "1",
    "0",
    "going-offline",
    "onlin",
    "onlinee",
    "online_",
    "online kernel",
    "online\r\n",
    "\n",
    " ",
    "online offline",
    "\0online",
]


@ALL
@pytest.mark.fact("5.4", "5.17", "5.19")
@pytest.mark.parametrize("text", NO_WORDS)
def test_other_words_are_einval_for_state_and_auto_online_blocks(boot: Boot, rules: Rules, text: str) -> None:
    """Exactly the four words, with at most one newline; nothing is changed."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log)
    before = snapshot(machine)
    assert refusal(write, machine, "memory32/state", text) == "EINVAL"
    assert refusal(write, machine, "auto_online_blocks", text) == "EINVAL"
    assert (snapshot(machine), log) == (before, [])


@pytest.mark.fact("5.4", "5.19")
@pytest.mark.parametrize("tail", ["", "\n", "\0", "\n\0junk", "\0\n\njunk"])
@pytest.mark.parametrize("word", WORDS)
def test_the_four_words_are_taken_with_a_newline_and_anything_after_a_nul(boot: Boot, word: str, tail: str) -> None:
    """All bytes count as written."""
    machine = with_node_1(boot)
    if word == "offline":
        write(machine, "memory32/state", "online")
    assert write(machine, "memory32/state", word + tail) == len(word + tail)
    assert state(machine, 32) == ("offline" if word == "offline" else "online")
    assert write(machine, "auto_online_blocks", word + tail) == len(word + tail)
    assert machine.tree.read(f"{MEMORY}/auto_online_blocks") == f"{word}\n"


@pytest.mark.fact("5.4")
def test_bytes_are_as_good_as_text(boot: Boot) -> None:
    """What is no ASCII is no word either."""
    machine = with_node_1(boot)
    assert machine.tree.write(f"{MEMORY}/memory32/state", b"online\n") == 7
    assert refusal(write, machine, "memory32/state", "öffline") == "EINVAL"
    assert refusal(machine.tree.write, f"{MEMORY}/memory32/state", b"\xff") == "EINVAL"


@ALL
@pytest.mark.fact("5.4", "5.17")
def test_a_write_of_nothing_does_nothing(boot: Boot, rules: Rules) -> None:
    """It returns 0 and does not reach the handler."""
    machine = with_node_1(boot, rules)
    before = snapshot(machine)
    for file in ("memory32/state", "memory32/online", "memory32/uevent", "auto_online_blocks"):
        assert write(machine, file, "") == 0
    assert snapshot(machine) == before


# -- 5.17: errno by cause


def veto(machine: Machine, rules: Rules, answer: NotifyResult, *actions: MemoryAction) -> Log:
    log = Log()
    three(machine, log, {-1: dict.fromkeys(actions, answer)})
    return log


@ALL
@FILES
@pytest.mark.fact("5.5", "5.17", "3.10")
@pytest.mark.parametrize(
    ("answer", "errno"),
    [
        (NOTIFY_BAD, "EPERM"),
        (notifier_from_errno(-12), "ENOMEM"),
        (notifier_from_errno(-16), "EBUSY"),
        (notifier_from_errno(-4095), "4095"),
        (NotifyResult(0x0D), "ENOMEM"),
        (NotifyResult(2), "EPERM"),
        (NotifyResult(0x7FFF), "32766"),
    ],
)
def test_a_refusal_reaches_the_writer_as_its_errno(
    boot: Boot, rules: Rules, file: str, on: str, off: str, answer: NotifyResult, errno: str
) -> None:
    """By either file and in both directions: the errno that the callback encoded, or a raw value less one."""
    machine = with_node_1(boot, rules)
    write(machine, "memory33/state", "online")
    log = veto(machine, rules, answer, MEM_GOING_ONLINE, MEM_GOING_OFFLINE)
    before = snapshot(machine)
    assert refusal(write, machine, f"memory32/{file}", on) == errno
    assert refusal(write, machine, f"memory33/{file}", off) == errno
    assert [line.split("(")[0] for line in rounds(log) if "PREPARE" not in line and "FINISH" not in line] == [
        "GOING_ONLINE",
        "CANCEL_ONLINE",
        "GOING_OFFLINE",
        "CANCEL_OFFLINE",
    ]
    assert snapshot(machine) == before


@FILES
@pytest.mark.fact("5.17", "3.9")
def test_a_refused_prepare_reaches_the_writer_as_its_errno(boot: Boot, file: str, on: str, off: str) -> None:
    """PREPARE only."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    log = veto(machine, Rules.LINUX_6_12, notifier_from_errno(-28), MEM_PREPARE_ONLINE)
    assert refusal(write, machine, f"memory32/{file}", on) == "ENOSPC"
    assert rounds(log) == ["PREPARE_ONLINE(0,0): 200 0 -1"]


@ALL
@FILES
@pytest.mark.fact("5.17", "1.8")
def test_a_raw_negative_is_a_success(boot: Boot, rules: Rules, file: str, on: str, off: str) -> None:
    """GOING is truncated, the change succeeds."""
    machine = with_node_1(boot, rules)
    log = Log()
    three(machine, log, {200: {MEM_GOING_ONLINE: NotifyResult(-16), MEM_GOING_OFFLINE: NotifyResult(-1)}})
    assert write(machine, f"memory32/{file}", on) == len(on)
    assert write(machine, f"memory32/{file}", off) == len(off)
    assert [line for line in rounds(log) if "PREPARE" not in line and "FINISH" not in line] == [
        "GOING_ONLINE(1,1): 200",
        "ONLINE(1,1): 200 0 -1",
        "GOING_OFFLINE(1,1): 200",
        "OFFLINE(1,1): 200 0 -1",
    ]


@ALL
@FILES
@pytest.mark.fact("5.17", "3.16")
def test_pages_that_stay_are_ebusy(boot: Boot, rules: Rules, file: str, on: str, off: str) -> None:
    """Without events for an unmovable one, with GOING and CANCEL for a driver's offline page."""
    machine = with_node_1(boot, rules)
    for block, kind in ((32, PageKind.UNMOVABLE), (33, PageKind.OFFLINE)):
        write(machine, f"memory{block}/state", "online_kernel")
        machine.alloc_pages(1, kind, blocks=[block])
    log = Log()
    three(machine, log)
    assert refusal(write, machine, f"memory32/{file}", off) == "EBUSY"
    assert log == []
    assert refusal(write, machine, f"memory33/{file}", off) == "EBUSY"
    assert rounds(log) == ["GOING_OFFLINE(-1,-1): 200 0 -1", "CANCEL_OFFLINE(-1,-1): 200 0 -1"]


@ALL
@FILES
@pytest.mark.fact("5.17", "3.41")
def test_a_signal_is_eintr(boot: Boot, rules: Rules, file: str, on: str, off: str) -> None:
    """While a page can't be moved."""
    machine = with_node_1(boot, rules)
    write(machine, "memory32/state", "online_movable")
    machine.pages.pin(machine.alloc_pages(1, blocks=[32]))
    thread = in_thread(lambda: write(machine, f"memory32/{file}", off))
    until_parked(thread)
    machine.send_signal(thread)
    assert refusal(thread.result) == "EINTR"


# -- parameters


@ALL
@pytest.mark.fact("5.8")
def test_the_parameters_at_boot(boot: Boot, rules: Rules) -> None:
    """Names, modes and defaults."""
    machine = boot("1GiB", rules=rules)
    expected = {
        "online_policy": (0o644, "contig-zones\n"),
        "auto_movable_ratio": (0o644, "301\n"),
        "auto_movable_numa_aware": (0o644, "Y\n"),
        "memmap_on_memory": (0o444, "N\n"),
    }
    tree = machine.tree
    assert tree.list(PARAMETERS) == sorted(expected)
    assert {name: (tree.mode(f"{PARAMETERS}/{name}"), tree.read(f"{PARAMETERS}/{name}")) for name in expected} == expected


@pytest.mark.fact("5.8")
@pytest.mark.parametrize(
    ("name", "text", "outcome"),
    [
        ("online_policy", "auto-movable\n", "auto-movable\n"),
        ("online_policy", "contig-zones", "contig-zones\n"),
        ("online_policy", "auto_movable", "EINVAL"),
        ("online_policy", "Auto-movable", "EINVAL"),
        ("auto_movable_ratio", "0x10\n", "16\n"),
        ("auto_movable_ratio", "020", "16\n"),
        ("auto_movable_ratio", "0", "0\n"),
        ("auto_movable_ratio", "4294967295", "4294967295\n"),
        ("auto_movable_ratio", "4294967296", "ERANGE"),
        ("auto_movable_ratio", "4294967296 junk", "EINVAL"),
        ("auto_movable_ratio", "18446744073709551616 junk", "ERANGE"),
        ("auto_movable_ratio", "0x10000000000000000g", "ERANGE"),
        ("auto_movable_ratio", "9" * 4095, "ERANGE"),
        ("auto_movable_ratio", "-1", "EINVAL"),
        ("auto_movable_ratio", "many", "EINVAL"),
        ("auto_movable_ratio", "3 0", "EINVAL"),
        ("auto_movable_ratio", "0x", "EINVAL"),
        ("auto_movable_ratio", "08", "EINVAL"),
        ("auto_movable_ratio", "\n", "EINVAL"),
        ("auto_movable_numa_aware", "foo", "N\n"),
        ("auto_movable_numa_aware", "0\n", "N\n"),
        ("auto_movable_numa_aware", "yes", "Y\n"),
        ("auto_movable_numa_aware", "off", "N\n"),
        ("auto_movable_numa_aware", "bar", "EINVAL"),
        ("memmap_on_memory", "Y", "EACCES"),
    ],
)
def test_what_a_parameter_takes(boot: Boot, name: str, text: str, outcome: str) -> None:
    """A number in any base, a bool by its first character, one of two policies; else an errno and no change.

    What overflows 64 bits is ERANGE whatever follows it, what overflows 32 only if nothing does (lib/kstrtox.c).
    """
    machine = boot("1GiB")
    path = f"{PARAMETERS}/{name}"
    before = snapshot(machine)
    if outcome.endswith("\n"):
        assert machine.tree.write(path, text) == len(text)
        assert machine.tree.read(path) == outcome
    else:
        assert refusal(machine.tree.write, path, text) == outcome
        assert snapshot(machine) == before


# -- uevents


@ALL
@pytest.mark.fact("5.12")
def test_a_uevent_is_a_header_and_four_keys_in_order(boot: Boot, rules: Rules) -> None:
    """``action@devpath``, ACTION, DEVPATH, SUBSYSTEM, SEQNUM; numbered without a gap."""
    machine = with_node_1(boot, rules)
    heard: list[Uevent] = []
    machine.uevents.subscribe(heard.append)
    first = machine.uevents.seqnum + 1
    write(machine, "memory32/state", "online")
    write(machine, "memory32/state", "offline")
    machine.remove_memory(4 * GIB, BLOCK)
    assert [event.encode() for event in heard] == [
        f"{action}@/devices/system/memory/memory32\0ACTION={action}\0DEVPATH=/devices/system/memory/memory32\0"
        f"SUBSYSTEM=memory\0SEQNUM={first + number}\0".encode()
        for number, action in enumerate(["online", "offline", "remove"])
    ]


@ALL
@pytest.mark.fact("5.12")
def test_uevents_can_be_asked_for_by_writing_their_action(boot: Boot, rules: Rules) -> None:
    """``change`` is repeated to everybody; an unknown action is EINVAL and sends nothing."""
    machine = with_node_1(boot, rules)
    heard: list[str] = []
    machine.uevents.subscribe(lambda event: heard.append(str(event)))
    assert write(machine, "memory32/uevent", "change\n") == 7
    assert machine.tree.write(f"{NODE}/node1/uevent", "add") == 3
    for text in ("bogus", "CHANGE", "change ", "change not-a-uuid", "\n"):
        assert refusal(write, machine, "memory32/uevent", text) == "EINVAL"
    assert heard == ["change@/devices/system/memory/memory32", "add@/devices/system/node/node1"]
    assert state(machine, 32) == "offline"


@ALL
@pytest.mark.fact("5.12", "3.17")
def test_what_fails_is_not_announced(boot: Boot, rules: Rules) -> None:
    """Neither malformed writes, nor what is there already, nor refusals."""
    machine = with_node_1(boot, rules)
    veto(machine, rules, NOTIFY_BAD, MEM_GOING_ONLINE)
    before = machine.uevents.seqnum
    for text in ("bogus", "offline", "online"):
        refusal(write, machine, "memory32/state", text)
    write(machine, "memory32/online", "0")
    assert machine.uevents.seqnum == before


def test_a_listener_that_has_stopped_hears_nothing_more(boot: Boot) -> None:
    """The function that subscribing gives ends it."""
    machine = with_node_1(boot)
    heard: list[str] = []
    stop = machine.uevents.subscribe(lambda event: heard.append(str(event)))
    write(machine, "memory32/state", "online")
    stop()
    write(machine, "memory32/state", "offline")
    assert heard == ["online@/devices/system/memory/memory32"]


# -- counts, and pages with bad hardware


@ALL
@pytest.mark.fact("5.14", "6.4")
def test_memory_total_moves_by_whole_blocks(boot: Boot, rules: Rules) -> None:
    """131072 kB for each block online; adding alone changes nothing; an empty zone spans nothing."""
    machine = with_node_1(boot, rules)
    total = machine.memory_total
    seen = []
    for block, word in [(32, "online"), (33, "online_movable"), (32, "offline"), (33, "offline")]:
        write(machine, f"memory{block}/state", word)
        seen.append((machine.memory_total - total) // 1024)
    assert seen == [131072, 262144, 131072, 0]
    assert [zone.spanned for zone in machine.nodes[1].zones] == [0, 0, 0, 0]


@pytest.mark.fact("5.10", "7.7")
@pytest.mark.parametrize("file", ["soft_offline_page", "hard_offline_page"])
@pytest.mark.parametrize(("text", "errno"), [("page", "EINVAL"), ("-1", "EINVAL"), ("", ""), (str(1 << 44), "ENXIO")])
def test_what_is_no_page_can_not_be_taken_away(boot: Boot, file: str, text: str, errno: str) -> None:
    """Text and negative numbers are EINVAL, an address without memory ENXIO."""
    machine = boot("1GiB", rules=Rules.LINUX_6_12)
    before = snapshot(machine)
    if errno:
        assert refusal(write, machine, file, text) == errno
    else:
        assert write(machine, file, text) == 0
    assert snapshot(machine) == before


@pytest.mark.fact("5.10", "7.7", "3.6")
def test_a_page_taken_away_for_good_keeps_its_block_from_coming_back(boot: Boot) -> None:
    """A byte address in any base; a second time it is EHWPOISON, softly it is no error; then online is EHWPOISON."""
    machine = boot(["1GiB"], rules=Rules.LINUX_6_12)
    address = hex(7 * BLOCK + 5 * MIB + 123)
    assert write(machine, "hard_offline_page", address) == len(address)
    assert refusal(write, machine, "hard_offline_page", address) == "EHWPOISON"
    assert write(machine, "soft_offline_page", str(int(address, 16))) == 9
    write(machine, "memory7/state", "offline")
    log = Log()
    three(machine, log)
    assert refusal(write, machine, "memory7/state", "online") == "EHWPOISON"
    assert refusal(write, machine, "memory7/online", "1") == "EHWPOISON"
    assert (log, state(machine, 7)) == ([], "offline")


@pytest.mark.fact("5.10")
def test_a_page_that_is_offline_can_not_be_taken_away_softly(boot: Boot) -> None:
    """EIO for soft, ENXIO for hard."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    assert refusal(write, machine, "soft_offline_page", hex(4 * GIB)) == "EIO"
    assert refusal(write, machine, "hard_offline_page", hex(4 * GIB)) == "ENXIO"


@pytest.mark.fact("5.10", "7.7")
def test_taking_a_page_away_softly_moves_what_is_in_it(boot: Boot) -> None:
    """Its owner keeps as many pages as before; hard, it loses one."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(10, blocks=[32], owner="app")
    write(machine, "soft_offline_page", hex(4 * GIB + 0x3000))
    assert held.nr_pages == 10
    write(machine, "hard_offline_page", hex(4 * GIB + 0x4000))
    assert held.nr_pages == 9
    taken = {pfn for extent in held.extents for pfn in range(extent.start_pfn, extent.end_pfn)}
    assert taken.isdisjoint({0x100003, 0x100004})


@pytest.mark.fact("7.7", "7.5")
def test_poisoning_the_pinned_page_of_a_stuck_offline_lets_it_end(boot: Boot) -> None:
    """Poisoned pages don't keep a block, so nothing is left to wait for."""
    machine = with_node_1(boot, Rules.LINUX_6_12)
    write(machine, "memory32/state", "online_movable")
    held = machine.alloc_pages(1, blocks=[32], owner="vmsplice")
    machine.pages.pin(held)
    thread = in_thread(lambda: write(machine, "memory32/state", "offline"))
    until_parked(thread)
    write(machine, "hard_offline_page", hex(4 * GIB))
    assert thread.result(10) == 7
