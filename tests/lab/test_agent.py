"""The agent of the guest, on a directory that looks like one."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memhp.errors import GuestFailed
from memhp.lab.agent import Agent, encode, serve
from memhp.lab.guest import Channel, GuestErrno

MEMORY = "sys/devices/system/memory"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with a block of node 0 that is online, and one of node 1 that is offline."""
    for block, (state, zones, node) in {"memory2": ("online", "Normal", 0), "memory10": ("offline", "Normal Movable", 1)}.items():
        directory = tmp_path / MEMORY / block
        (directory / f"node{node}").mkdir(parents=True)
        (directory / "state").write_text(f"{state}\n")
        (directory / "valid_zones").write_text(f"{zones}\n")
    (tmp_path / MEMORY / "block_size_bytes").write_text("8000000\n")
    nodes = tmp_path / "sys/devices/system/node"
    nodes.mkdir()
    for mask in ("possible", "online", "has_normal_memory", "has_memory", "has_cpu"):
        (nodes / mask).write_text("0-1\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:         131072 kB\nMemFree: 1 kB\n")
    (tmp_path / "sys/kernel/tracing").mkdir(parents=True)
    (tmp_path / "sys/kernel/tracing/trace").write_text("# tracer: nop\n\n one-1 [000] 1.0: memhp_call: x\n")
    return tmp_path


@pytest.fixture
def channel(root: Path) -> Iterator[Channel]:
    """The lab's end of a port with an agent at the other."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(Agent(str(root)), theirs.fileno()))
    thread.start()
    yield Channel(ours)
    ours.close()
    thread.join(10)
    theirs.close()


def test_the_picture_of_a_machine(root: Path) -> None:
    """Blocks ascend by number, with node, state and zones as the files say."""
    machine = Agent(str(root)).machine()
    machine.pop("release")

    assert machine == {
        "block_size": 128 << 20,
        "memory": 128 << 20,
        "nodes": dict.fromkeys(("possible", "online", "has_normal_memory", "has_memory", "has_cpu"), "0-1"),
        "blocks": [
            {"id": 2, "node": 0, "state": "online", "zones": ["Normal"]},
            {"id": 10, "node": 1, "state": "offline", "zones": ["Normal", "Movable"]},
        ],
    }


def test_an_error_of_the_system_is_an_answer(root: Path) -> None:
    """Its number and text are the guest's."""
    answer = Agent(str(root)).answer({"id": 7, "do": "read", "path": "/nosuch"})
    assert answer == {"id": 7, "errno": errno.ENOENT, "message": "No such file or directory"}


def test_a_step_is_what_lies_between_begin_and_end(root: Path) -> None:
    """The trace is emptied before, and uevents that came before are forgotten."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        agent = Agent(str(root), theirs)
        ours.send(b"add@/old\0")
        assert agent.end(0.0) == {"trace": ["one-1 [000] 1.0: memhp_call: x"], "uevents": ["add@/old\0"]}
        ours.send(b"add@/older\0")
        agent.begin()
        ours.send(b"add@/new\0")
        assert agent.end(0.0) == {"trace": [], "uevents": ["add@/new\0"]}


QUEUED = "kworker [000] 1.0: workqueue_queue_work: work struct=1 function={} workqueue=events_freezable\n"
ENDED = "kworker [000] 2.0: workqueue_execute_end: work struct 1: function {}\n"


def settles(root: Path, trace: str, least: int) -> bool:
    """Say whether the agent's wait ends with the trace as it is; if not, more work is done, so that it ends then."""
    path = root / "sys/kernel/tracing/trace"
    path.write_text(trace)
    looked = threading.Event()

    class Watched(Agent):
        def read(self, path: str) -> str:
            text = super().read(path)
            looked.set()
            return text

    ended = threading.Event()

    def wait() -> None:
        Watched(str(root)).settle("its_work", "workqueue_queue_work", "workqueue_execute_end", least)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    looked.wait(10)
    looked.clear()
    settled = ended.wait(10) if trace.count("queue_work: ") == trace.count("execute_end: ") >= least else not looked.wait(10)
    path.write_text((QUEUED + ENDED).format("its_work", "its_work") * max(least, 1))
    thread.join(10)
    assert ended.is_set()
    return settled


@pytest.mark.parametrize(
    ("trace", "least", "settled"),
    [
        ("", 0, True),
        ("", 1, False),
        (QUEUED.format("its_work"), 0, False),
        (QUEUED.format("its_work") + ENDED.format("its_work"), 1, True),
        (QUEUED.format("its_work") + ENDED.format("its_work") + QUEUED.format("its_work"), 1, False),
    ],
)
def test_a_driver_has_settled_when_all_of_its_work_has_ended(root: Path, trace: str, least: int, settled: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """And when as much as was to be expected was queued at all."""
    assert settles(root, trace, least) is settled


def test_the_work_of_others_is_passed_over(root: Path) -> None:
    """Theirs may go on."""
    assert settles(root, QUEUED.format("another"), 0)


def test_a_program_says_how_it_ended(root: Path) -> None:
    """Its status, and what it wrote to either output."""
    agent = Agent(str(root))
    assert agent.run(["/bin/sh", "-c", "echo to one; echo to two >&2; exit 3"]) == {"status": 3, "said": "to one\nto two\n"}


def test_requests_and_answers_over_a_port(channel: Channel, root: Path) -> None:
    """Each answer belongs to its request; an errno is raised."""
    assert channel.ask("read", 10, path=f"{MEMORY}/memory2/state") == "online\n"
    assert channel.ask("write", 10, path=f"{MEMORY}/memory2/state", text="offline") == 7
    assert (root / MEMORY / "memory2/state").read_text() == "offline"
    assert channel.ask("grep", 10, path="/proc/meminfo", pattern="Free") == ["MemFree: 1 kB"]
    with pytest.raises(GuestErrno) as refusal:
        channel.ask("write", 10, path=f"{MEMORY}/nosuch/state", text="online")
    assert (refusal.value.errno, str(refusal.value)) == (errno.ENOENT, "ENOENT: No such file or directory")


def test_what_is_no_message_is_passed_over() -> None:
    """Kernel messages and answers to others may come in between, and before a message in its line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(
            b"[ 1.0] hello\n@memhp {broken\n" + encode({"id": 3, "value": 1}) + b"[ 2.0] x" + encode({"id": 0, "value": 2})
        )
        assert Channel(ours).wait(0, 10) == 2


def test_a_guest_that_says_nothing_is_an_error() -> None:
    """In the time that was given, not later."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(GuestFailed, match=r"the guest did not answer within 0\.1 s"):
        Channel(ours).wait(1, 0.1)


def test_a_guest_that_ends_is_an_error() -> None:
    """Whether it ends before the question or before the answer."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        with pytest.raises(GuestFailed, match="the guest ended"):
            Channel(ours).wait(1, 10)
        with pytest.raises(GuestFailed, match="QEMU ended"):
            Channel(ours, lambda: "QEMU ended").ask("machine", 10)


def test_messages_are_lines_of_json() -> None:
    """Whatever is in them, a newline ends one."""
    message = encode({"id": 1, "value": "a\nb\u00e9"})
    assert message.count(b"\n") == 1
    assert json.loads(message.removeprefix(b"@memhp ")) == {"id": 1, "value": "a\nb\u00e9"}
