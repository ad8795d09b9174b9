"""``memhp watch``: what is heard, what is lost, and what the kernel's notifier calls look like."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memhp import DirTree, InvalidInput, Machine, MemoryAction
from memhp.abi import btf
from memhp.abi.tracing import BIT_FLAGS, ChainLayout, definitions, layout_from_btf
from memhp.abi.uevent import Uevent
from memhp.cli import main
from memhp.cli.watch import as_json, as_text
from memhp.errors import HostError, NoMemoryBlocks
from memhp.host import Host
from memhp.host.feeds import NetlinkFeed, Overrun
from memhp.host.trace import ChainReader
from memhp.host.watch import ChainCalled, Event, Found, Lost, UeventSeen, Watch
from trees import MEMORY, TreeSpec, block, write


def told(events: list[Event]) -> list[tuple[Any, ...]]:
    """Events without their times."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, UeventSeen):
            found.append((str(event.uevent), event.block))
        elif isinstance(event, Lost):
            found.append(("lost", event.numbers, event.found))
        elif isinstance(event, Found):
            found.append(("found", event.block, event.was, event.now))
    return found


def test_a_model_is_watched_as_a_machine_is(boot: Callable[..., Machine]) -> None:
    """Blocks and nodes that come, go online, offline, and away."""
    machine = boot(["1GiB", 0])
    with Host(machine.tree).watch(machine.uevents) as watch:
        machine.add_memory(1, 4 << 30, 128 << 20)
        machine.device_online(32)
        machine.device_offline(32)
        machine.remove_memory(4 << 30, 128 << 20)
        assert told(list(watch.events(timeout=0))) == [
            ("add@/devices/system/memory/memory32", 32),
            ("add@/devices/system/node/node1", None),
            ("online@/devices/system/memory/memory32", 32),
            ("offline@/devices/system/memory/memory32", 32),
            ("remove@/devices/system/memory/memory32", 32),
            ("remove@/devices/system/node/node1", None),
        ]
    machine.device_offline(7)  # nobody listens any more


class Scripted:
    """A feed that gives what a test wants, one batch at a time; ``after`` runs before a batch."""

    def __init__(self, *batches: list[Uevent | Overrun]) -> None:
        self._batches = list(batches)
        self._reading, self._writing = os.pipe()
        for _ in batches:
            os.write(self._writing, b"!")

    def fileno(self) -> int:
        return self._reading

    def take(self) -> list[Uevent | Overrun]:
        os.read(self._reading, 1)
        return self._batches.pop(0)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


def uevent(number: int, what: str = "change@/devices/pci/0", subsystem: str = "pci") -> Uevent:
    action, _, devpath = what.partition("@")
    return Uevent(action, devpath, subsystem, number)


def online(number: int, which: int) -> Uevent:
    return uevent(number, f"online@/devices/system/memory/memory{which}", "memory")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return TreeSpec(blocks={number: block("offline") for number in (1, 2, 3)}).write(tmp_path / "root")


def watched(root: Path, *batches: list[Uevent | Overrun], change: Callable[[], None] = lambda: None, every: bool = False) -> Any:
    with Watch(Host(DirTree(root)), Scripted(*batches), every=every) as watch:
        change()
        return told(list(watch.events(timeout=0)))


def test_a_gap_in_the_numbers_is_told_with_what_is_different_now(root: Path) -> None:
    """A block whose uevent was heard is known; one whose wasn't is found."""

    def change() -> None:
        for number in (1, 2):
            write(root / MEMORY / f"memory{number}" / "state", "online")
        write(root / MEMORY / "memory9" / "state", "offline")

    assert watched(root, [online(10, 1), online(14, 3)], change=change) == [
        ("online@/devices/system/memory/memory1", 1),
        ("online@/devices/system/memory/memory3", 3),
        ("lost", (11, 12, 13), 3),
        ("found", 2, "offline", "online"),
        ("found", 3, "online", "offline"),
        ("found", 9, None, "offline"),
    ]


def test_numbers_out_of_order_are_no_loss(root: Path) -> None:
    """The kernel numbers uevents before it sends them, so they may overtake each other."""
    assert watched(root, [uevent(5), uevent(7)], [uevent(6), uevent(8)]) == []


def test_uevents_of_other_devices_count_and_are_shown_if_wanted(root: Path) -> None:
    """Numbers are those of all uevents of the system."""
    batch: list[Uevent | Overrun] = [uevent(5), uevent(6)]
    assert watched(root, batch, every=True) == [("change@/devices/pci/0", None)] * 2


def test_a_buffer_that_was_full_is_told(root: Path) -> None:
    """The kernel says ENOBUFS, and not how many it dropped; the gap in the numbers tells later."""
    assert watched(root, [uevent(1), Overrun(), uevent(3)]) == [("lost", (), 0), ("lost", (2,), 0)]


def test_a_large_gap_is_not_waited_for(root: Path) -> None:
    """Nobody waits for thousands of stragglers."""
    (lost,) = watched(root, [uevent(1), uevent(5000)])
    assert (lost[0], len(lost[1]), lost[2]) == ("lost", 4998, 0)


def test_a_machine_without_memory_blocks_can_not_be_watched(tmp_path: Path) -> None:
    """The same error as everywhere, and the feed is closed."""
    feed = Scripted()
    with pytest.raises(NoMemoryBlocks):
        Watch(Host(DirTree(tmp_path)), feed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(feed.fileno())


def test_the_kernels_socket_can_be_opened_and_is_quiet() -> None:
    """Without root, too."""
    feed = NetlinkFeed()
    assert all(isinstance(one, (Uevent, Overrun)) for one in feed.take())
    feed.close()


CALLS: list[Event] = [
    UeventSeen(0.25, online(583, 32), 32),
    UeventSeen(0.25, uevent(584), None),
    Lost(1.5, (3, 4, 5), 1),
    Lost(1.5, (), 0),
    Found(2.0, 5, "online", None),
    ChainCalled(3.0, MemoryAction.MEM_GOING_OFFLINE, 2, 32 << 27, 1 << 27, (-1, 1), 0x8002, 58e-6),
    ChainCalled(3.0, MemoryAction.MEM_ONLINE, 0, 32 << 27, 2 << 27, (-1, -1), 1, 0.0119),
    ChainCalled(3.0, None, 77, 0, 4096, None, None, None),
]


def test_lines_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time, what it is, which memory."""
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    assert [as_text(event, 1 << 27) for event in CALLS] == [
        "00:00:00.250  online    memory32  [mem 0x100000000-0x107ffffff]",
        "00:00:00.250  change    /devices/pci/0",
        "00:00:01.500  lost      3 uevents (SEQNUM 3-5); all blocks were read again: 1 differs",
        "00:00:01.500  lost      uevents, because they came too fast; all blocks were read again: none differ",
        "00:00:02.000  found     memory5: online -> not there",
        "00:00:03.000  call      MEM_GOING_OFFLINE   [mem 0x100000000-0x107ffffff] 128 MiB nodes -1,1: NOTIFY_BAD, 58 us",
        "00:00:03.000  call      MEM_ONLINE          [mem 0x100000000-0x10fffffff] 256 MiB: NOTIFY_OK, 11.9 ms",
        "00:00:03.000  call      action 77           [mem 0x00000000-0x00000fff] 4 KiB: has not returned yet",
    ]


def test_lines_for_programs() -> None:
    """Each kind of event has all its keys; numbers are in bytes and seconds."""
    assert [as_json(event) for event in (CALLS[0], CALLS[2], CALLS[4], CALLS[5], CALLS[7])] == [
        {
            "event": "uevent",
            "time": 0.25,
            "action": "online",
            "devpath": "/devices/system/memory/memory32",
            "subsystem": "memory",
            "seqnum": 583,
            "block": 32,
            "extra": {},
        },
        {"event": "lost", "time": 1.5, "seqnums": [3, 4, 5], "found": 1},
        {"event": "found", "time": 2.0, "block": 5, "was": "online", "now": None},
        {
            "event": "call",
            "time": 3.0,
            "action": "MEM_GOING_OFFLINE",
            "number": 2,
            "start": 4294967296,
            "size": 134217728,
            "status_change_nid_normal": -1,
            "status_change_nid": 1,
            "answer": "NOTIFY_BAD",
            "seconds": 58e-6,
        },
        {
            "event": "call",
            "time": 3.0,
            "action": None,
            "number": 77,
            "start": 0,
            "size": 4096,
            "status_change_nid_normal": None,
            "status_change_nid": None,
            "answer": None,
            "seconds": None,
        },
    ]


# As a 6.1 kernel and a 6.12 kernel left them in trace_pipe; the task is a shell's.
FROM_6_1 = b"""\
   bash-94 [000] ..... 12.500000: memhp_call: (memory_notify+0x0/0x20) action=8 start=1048576 nr=32768 normal=-1 nid=1
   bash-94 [000] ..... 12.500365: memhp_return: (memory_subsys_online+0x60/0xa0 <- memory_notify) answer=1
   cat-95 [000] ..... 12.600000: sched_switch: prev=cat
   bash-94 [000] ..... 13.000000: memhp_call: (memory_notify+0x0/0x20) action=2 start=1048576 nr=32768 normal=-1 nid=1
"""


def test_calls_are_read_from_the_trace_as_it_comes() -> None:
    """In pieces of any size; a call without a return hangs, is told once, and again when it returns."""
    offsets = {"start_pfn": 0, "nr_pages": 8, "status_change_nid_normal": 16, "status_change_nid": 20}
    reader = ChainReader(ChainLayout(offsets, BIT_FLAGS), began=1000.0, page_size=4096)
    found = [call for at in range(0, len(FROM_6_1), 7) for call in reader.feed(FROM_6_1[at : at + 7])]
    (call,) = found
    assert call.seconds == pytest.approx(365e-6, rel=1e-3)
    assert call == ChainCalled(1012.5, MemoryAction.MEM_GOING_ONLINE, 8, 1 << 32, 1 << 27, (-1, 1), 1, call.seconds)
    assert reader.hanging(1013.5) is None
    hanging = reader.hanging(1014.1)
    assert hanging == ChainCalled(1013.0, MemoryAction.MEM_GOING_OFFLINE, 2, 1 << 32, 1 << 27, (-1, 1), None, None)
    assert reader.hanging(1015.0) is None
    (returned,) = reader.feed(b"  bash-94 [000] ..... 16.000000: memhp_return: (x <- memory_notify) answer=32770\n")
    assert (returned.answer, returned.seconds) == (0x8002, 3.0)


@pytest.mark.fact("2.3")
def test_what_is_probed_follows_the_kernels_own_types() -> None:
    """6.1 and 6.12 lay the structure out differently; 6.17 and newer don't say which nodes change."""
    old = {"start_pfn": 0, "nr_pages": 8, "status_change_nid_normal": 16, "status_change_nid": 20}
    fields = "start=+0($arg2):u64 nr=+8($arg2):u64 normal=+16($arg2):s32 nid=+20($arg2):s32"
    assert definitions("memory_notify", 1, old, head=False, group="memhp_7") == [
        f"p:memhp_7/memhp_call memory_notify action=$arg1:u64 {fields}",
        "r:memhp_7/memhp_return memory_notify answer=$retval:u32",
    ]
    new = {"altmap_start_pfn": 0, "altmap_nr_pages": 8, "start_pfn": 16, "nr_pages": 24}
    layout = layout_from_btf(new, {"MEM_ONLINE": 0, "MEM_GOING_OFFLINE": 1, "SOMETHING_NEW": 9})
    assert layout == ChainLayout(
        {"start_pfn": 16, "nr_pages": 24}, {0: MemoryAction.MEM_ONLINE, 1: MemoryAction.MEM_GOING_OFFLINE}
    )
    assert definitions("blocking_notifier_call_chain", 2, layout.offsets, head=True) == [
        "p:memhp_call blocking_notifier_call_chain action=$arg2:u64 start=+16($arg3):u64 nr=+24($arg3):u64 head=$arg1:x64",
        "r:memhp_return blocking_notifier_call_chain answer=$retval:u32 head=$arg1:x64",
    ]


def made_btf() -> bytes:
    """An int, a structure with members at 0 and 16 bytes, a typedef, an enumeration; as btf.rst lays them out."""
    names = b"\0int\0memory_notify\0start_pfn\0nr_pages\0pfn_t\0memory_block_state\0MEM_ONLINE\0MEM_GOING_OFFLINE\0"

    def at(name: bytes) -> int:
        return names.index(b"\0" + name + b"\0") + 1

    types = struct.pack("<III", at(b"int"), 1 << 24, 8) + struct.pack("<I", 64)
    types += struct.pack("<III", at(b"pfn_t"), 8 << 24, 1)
    types += struct.pack("<III", at(b"memory_notify"), 4 << 24 | 2, 24)
    types += struct.pack("<III", at(b"start_pfn"), 1, 0) + struct.pack("<III", at(b"nr_pages"), 1, 128)
    types += struct.pack("<III", at(b"memory_block_state"), 6 << 24 | 2, 4)
    types += struct.pack("<Ii", at(b"MEM_ONLINE"), 0) + struct.pack("<Ii", at(b"MEM_GOING_OFFLINE"), 1)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names


def test_the_kernels_types_are_read() -> None:
    """Members with their offsets in bytes, enumerations with their values; what isn't there is None."""
    data = made_btf()
    assert btf.members(data, "memory_notify") == {"start_pfn": 0, "nr_pages": 16}
    assert btf.members(data, "node_notify") is None
    assert btf.enumerators(data, "MEM_ONLINE") == {"MEM_ONLINE": 0, "MEM_GOING_OFFLINE": 1}
    assert btf.enumerators(data, "MEM_OFFLINE") is None


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb" + b"\0" * 10, b"ELF!" * 10, made_btf()[:60]])
def test_what_is_no_btf_is_refused(data: bytes) -> None:
    """Another byte order, another format, or half of a file."""
    with pytest.raises(InvalidInput, match="/sys/kernel/btf/vmlinux"):
        btf.members(data, "memory_notify")


@pytest.mark.parametrize("words", [["--timeout", "x"], ["--timeout", "-1"], ["--count", "0"], ["--count", "1.5"], ["extra"]])
def test_bad_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With argparse's exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["watch", *words])
    assert ended.value.code == 2
    assert "memhp watch: error: " in capsys.readouterr().err


def test_without_tracefs_a_trace_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing has been done."""
    monkeypatch.setattr("memhp.host.trace._PLACES", ("/no/such/tracing",))
    monkeypatch.setattr("memhp.host.trace.running_layout", lambda: ChainLayout({}, {}))
    assert main(["watch", "--trace"]) == 1
    assert capsys.readouterr().err == (
        "memhp watch: /no/such/tracing: there are no kprobe events; mount -t tracefs tracefs /sys/kernel/tracing, as root; "
        "the kernel needs CONFIG_KPROBE_EVENTS\n"
    )


def test_without_btf_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which kernel option is needed."""
    monkeypatch.setattr("memhp.host.trace.BTF", "/no/such/btf")
    from memhp.host.trace import running_layout

    with pytest.raises(HostError, match="the kernel needs CONFIG_DEBUG_INFO_BTF"):
        running_layout()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to(number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM are how a watcher ends: 0, without a word."""
    if not Path("/sys/devices/system/memory").exists():
        pytest.skip("no memory blocks here")
    code = "import sys; from memhp.host import watch; w = watch.Watch\n"
    code += "def started(*a, **k):\n r = w(*a, **k); print('ready', flush=True); return r\nwatch.Watch = started\n"
    code += "from memhp.cli import main; sys.exit(main(['watch']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


IN_A_GUEST = """
cd /root
clean() { cat /sys/kernel/tracing/kprobe_events; ls /sys/kernel/tracing/instances; }
enabled() { cat /sys/kernel/tracing/instances/memhp*/events/memhp*/memhp_return/enable 2>/dev/null; }
ready() { for i in $(seq 200); do [ "$(enabled)" = 1 ] && break; sleep 0.1; done; }
python3 -m memhp.cli watch --trace --json --timeout 20 --count $2 >heard 2>errors &
watcher=$!
ready
echo online_movable >/sys/devices/system/memory/memory32/state
echo offline >/sys/devices/system/memory/memory32/state
wait $watcher
echo "ended $?"
cat heard errors
clean
for signal in TERM KILL; do  # bash has background jobs ignore INT
    python3 -m memhp.cli watch --trace --timeout 20 >/dev/null &
    watcher=$!
    ready
    kill -$signal $watcher
    wait $watcher 2>/dev/null
    for i in $(seq 50); do [ -z "$(clean)" ] && break; sleep 0.1; done
    echo "left by $signal: $(clean)"
done
"""


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("kernel", "actions"),
    [
        ("6.1", ["MEM_GOING_ONLINE", "MEM_ONLINE", "MEM_GOING_OFFLINE", "MEM_OFFLINE"]),
        (
            "6.12",
            ["MEM_PREPARE_ONLINE", "MEM_GOING_ONLINE", "MEM_ONLINE", "MEM_GOING_OFFLINE", "MEM_OFFLINE", "MEM_FINISH_OFFLINE"],
        ),
    ],
)
@pytest.mark.fact("2.1", "3.1", "5.12")
def test_a_real_kernel_is_watched_and_nothing_is_left_in_it(kernel: str, actions: list[str], tmp_path: Path) -> None:
    """Each call with its answer, each uevent; and the probes are gone after the end, Ctrl-C, SIGTERM and SIGKILL."""
    from memhp.lab.boot import Session

    script = tmp_path / "watch.sh"
    script.write_text(IN_A_GUEST)
    with Session(kernel, ["512MiB", 0], parameters="memhp_default_state=offline", add=[(script, "/root/watch.sh")]) as guest:
        guest.plug("128MiB", node=1)
        done = guest.run(f"bash /root/watch.sh x {len(actions) + 2}")
    lines = done.output.splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    calls = [event for event in events if event["event"] == "call"]
    assert [event["action"] for event in calls] == actions
    assert {(event["start"], event["size"], event["answer"]) for event in calls} == {(1 << 32, 1 << 27, "NOTIFY_OK")}
    assert all(event["seconds"] > 0 for event in calls)
    assert [(event["action"], event["block"]) for event in events if event["event"] == "uevent"] == [
        ("online", 32),
        ("offline", 32),
    ]
    assert [line for line in lines if not line.startswith("{")] == [
        "ended 0",
        "left by TERM: ",
        "left by KILL: ",
    ]
