"""Playing scenarios: what happens is what the file says, and what does not hold is a failure with its evidence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memhp import Rules, ScenarioError
from playing import MACHINE, Play, Played, play_text

NODES = "machine: {nodes: [1GiB, 0]}\n"


# -- events and traces


def test_a_run_is_a_stream_of_events(play: Play) -> None:
    """Begin, machine, callbacks, then per step what happens in it and its result, machine again, end."""
    run = play(
        """
title: T
callbacks: {a: {priority: 5}}
steps:
  - add: {size: 128MiB}
  - online: 32
"""
    )
    assert run.kinds == [
        "scenario",
        "machine",
        "callbacks",
        *["step", "uevent", "result"],
        *["step", "call", "call", "uevent", "result"],
        "machine",
        "end",
    ]
    assert run.of("callbacks")[0]["registered"] == [{"name": "a", "priority": 5}]
    (end,) = run.of("end")
    assert end == {"event": "end", "steps": 2, "calls": 2, "failures": 0}
    assert run.failures == 0


def test_a_call_says_everything_that_the_callback_was_told(play: Play) -> None:
    """Action, range, both nids, the callback and its answer, and in which thread."""
    run = play(
        "callbacks: {a: {priority: 5}}\nsteps:\n- add: {size: 128MiB, node: 1}\n- {online: 32, thread: T}\n", machine=NODES
    )
    call = run.of("call")[0]
    assert call.pop("seconds") >= 0
    assert call == {
        "event": "call",
        "action": "MEM_GOING_ONLINE",
        "blocks": "memory32",
        "start_pfn": 0x100000,
        "nr_pages": 0x8000,
        "status_change_nid_normal": 1,
        "status_change_nid": 1,
        "callback": "a",
        "priority": 5,
        "answer": "OK",
        "error": None,
        "thread": "T",
    }


def test_the_machine_is_shown_before_and_after(play: Play) -> None:
    """Each block with its node, state, zones and pages in use."""
    run = play("steps:\n- add: {size: 256MiB}\n- online: {blocks: 32, type: online_movable}\n")
    before, after = run.of("machine")
    assert (before["moment"], before["source"], before["block_size"]) == ("before", "description", 128 << 20)
    assert [block["id"] for block in before["blocks"]] == list(range(8))
    assert after["blocks"][8:] == [
        {"id": 32, "node": 0, "state": "online", "zones": ["Movable"], "used_pages": 0},
        {"id": 33, "node": 0, "state": "offline", "zones": [], "used_pages": 0},
    ]
    assert after["nodes"]["has_memory"] == "0"


def test_the_trace_is_a_literal(play: Play) -> None:
    """The trace of a step is compared as a whole, and so is the one of all steps."""
    run = play(
        """
callbacks: {a: {}, b: {MEM_GOING_OFFLINE: EAGAIN}}
steps:
  - add: {size: 128MiB, node: 1}
  - online: 32
    expect:
      trace:
        - "MEM_GOING_ONLINE(1,1) memory32 a: OK"
        - "MEM_GOING_ONLINE(1,1) memory32 b: OK"
        - "MEM_ONLINE(1,1) memory32 a: OK"
        - "MEM_ONLINE(1,1) memory32 b: OK"
  - offline: 32
    expect:
      result: EAGAIN
      trace:
        - "MEM_GOING_OFFLINE(1,1) memory32 a: OK"
        - "MEM_GOING_OFFLINE(1,1) memory32 b: EAGAIN"
        - "MEM_CANCEL_OFFLINE(1,1) memory32 a: OK"
        - "MEM_CANCEL_OFFLINE(1,1) memory32 b: OK"
""",
        machine=NODES,
    )
    assert run.failed == []
    assert run.trace[-2:] == ["MEM_CANCEL_OFFLINE(1,1) memory32 a: OK", "MEM_CANCEL_OFFLINE(1,1) memory32 b: OK"]


def test_rules_can_be_replaced(play: Play) -> None:
    """The player's rules go before the file's: 6.12 prepares and finishes."""
    text = "callbacks: {a: {}}\nsteps:\n- add: {size: 128MiB}\n"
    machine = 'machine: {nodes: [1GiB], rules: "6.1", parameters: {memhp_default_state: online}}\n'
    assert play(text, machine=machine).short == ["GOING_ONLINE a: OK", "ONLINE a: OK"]
    run = play(text, machine=machine, rules=Rules.LINUX_6_12)
    assert run.short == ["PREPARE_ONLINE a: OK", "GOING_ONLINE a: OK", "ONLINE a: OK"]
    assert run.of("scenario")[0]["rules"] == "6.12"


VARIED = """
callbacks:
  a: {priority: 1, MEM_ONLINE: {allocate: {name: x, size: 1MiB}}, MEM_GOING_OFFLINE: {free: x}}
  b: {MEM_GOING_OFFLINE: {answer: BAD, times: 1}, MEM_CANCEL_OFFLINE: {raise: boo}}
steps:
  - add: {size: 512MiB, node: 1}
    as: new
  - online: {blocks: first 2, among: new}
  - allocate: {name: stuck, pages: 4, blocks: 33, pinned: true}
  - {offline: 33, thread: T, expect: EPERM}
  - {offline: 33, thread: T, expect: EINTR}
  - {offline: 32, thread: U}
  - read: memory33/state
  - signal: T
  - {offline: 33, thread: T}
  - unpin: stuck
  - remove: 32-35
"""


@pytest.mark.parametrize("rules", list(Rules))
def test_playing_twice_gives_the_same_events(play: Play, rules: Rules) -> None:
    """Also with threads that wait for each other, everything but the time is the same each time."""

    def events() -> list[dict[str, Any]]:
        run = play(VARIED, machine="machine: {nodes: [1GiB, 0], parameters: {memhp_default_state: offline}}\n", rules=rules)
        assert run.failed == []
        return [{key: value for key, value in event.items() if key != "seconds"} for event in run.events]

    first = events()
    for _ in range(10):
        assert events() == first


# -- expectations that do not hold


@pytest.mark.parametrize(
    ("expect", "failure"),
    [
        ("EBUSY", ("step 2: online 32", "EBUSY", "ok")),
        ("{text: memory33}", ("text of step 2", "memory33", "memory32")),
        ("{files: {memory32/state: offline}}", ("memory32/state", "offline", "online")),
        ("{files: {memory99/state: offline}}", ("memory99/state", "offline", "ENOENT")),
        ("{blocks: {32: offline}}", ("state of memory32", "offline", "online")),
        ("{blocks: {40: offline}}", ("state of memory40", "offline", "absent")),
        ("{lockdep: 1}", ("lockdep reports", "1", "0")),
        (
            "{uevents: []}",
            ("uevents", [], ["online@/devices/system/memory/memory32"]),
        ),
        (
            '{trace: ["MEM_ONLINE(-1,-1) memory32 a: OK"]}',
            (
                "trace",
                ["MEM_ONLINE(-1,-1) memory32 a: OK"],
                ["MEM_GOING_ONLINE(-1,-1) memory32 a: OK", "MEM_ONLINE(-1,-1) memory32 a: OK"],
            ),
        ),
    ],
)
def test_an_expectation_that_does_not_hold_is_a_failure(play: Play, expect: str, failure: tuple[str, object, object]) -> None:
    """It says which expectation in which line, what was expected and what was the case; the run goes on."""
    run = play(f"callbacks: {{a: {{}}}}\nsteps:\n- add: {{size: 128MiB}}\n- online: 32\n  expect: {expect}\n- offline: 32\n")
    assert run.failed == [failure]
    assert run.failures == run.of("end")[0]["failures"] == 1
    assert run.results == {1: "ok", 2: "ok", 3: "ok"}
    (event,) = run.of("failure")
    assert (event["file"].rpartition("/")[2], event["line"]) == ("scenario.yaml", 5 if failure[0] == "step 2: online 32" else 6)


def test_a_failed_trace_shows_a_diff(play: Play) -> None:
    """Lines with ``-`` were expected, lines with ``+`` happened."""
    (event,) = play(
        """
callbacks: {a: {MEM_GOING_ONLINE: BAD}}
steps:
  - add: {size: 128MiB}
  - online: 32
    expect:
      result: EPERM
      trace:
        - "MEM_GOING_ONLINE(-1,-1) memory32 a: BAD"
        - "MEM_ONLINE(-1,-1) memory32 a: OK"
"""
    ).of("failure")
    assert event["diff"] == [
        "  MEM_GOING_ONLINE(-1,-1) memory32 a: BAD",
        "- MEM_ONLINE(-1,-1) memory32 a: OK",
        "+ MEM_CANCEL_ONLINE(-1,-1) memory32 a: OK",
    ]


def test_an_errno_that_nobody_expects_is_a_failure(play: Play) -> None:
    """A step without expectations must succeed; the failure carries the message."""
    run = play("steps:\n- online: 99\n")
    assert run.failed == [("step 1: online 99", "ok", "ENODEV")]
    assert run.of("failure")[0]["message"] == run.of("result")[0]["message"] == "there is no memory block 99"


def test_an_errno_that_is_expected_and_does_not_come_is_a_failure(play: Play) -> None:
    """``expect: EBUSY`` fails when all went well."""
    assert play("steps:\n- read: block_size_bytes\n  expect: EBUSY\n").failed == [
        ("step 1: read block_size_bytes", "EBUSY", "ok")
    ]


def test_an_errno_goes_by_both_its_names(play: Play) -> None:
    """EOPNOTSUPP and ENOTSUP are one errno."""
    text = "callbacks: {a: {MEM_GOING_ONLINE: EOPNOTSUPP}}\nsteps:\n- add: {size: 128MiB}\n- {online: 32, expect: NAME}\n"
    assert play(text.replace("NAME", "EOPNOTSUPP")).failed == play(text.replace("NAME", "ENOTSUP")).failed == []


def test_what_is_expected_in_the_end_is_looked_at_in_the_end(play: Play) -> None:
    """Trace and uevents of the whole run, states and files as they are then."""
    run = play(
        """
callbacks: {a: {}}
steps:
  - add: {size: 128MiB}
  - online: 32
expect:
  trace: []
  uevents: [add@/devices/system/memory/memory32, online@/devices/system/memory/memory32]
  blocks: {32: offline}
  files: {memory32/valid_zones: Movable}
  lockdep: 0
"""
    )
    assert [what for what, _, _ in run.failed] == ["trace", "memory32/valid_zones", "state of memory32"]


# -- which blocks are meant

SELECTIONS = """
callbacks: {{}}
steps:
  - add: {{size: 256MiB, node: 0}}
    as: near
  - add: {{size: 512MiB, node: 1}}
    as: far
  - online: {selection}
"""


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("32", "32"),
        ("33,36-37", "33,36-37"),
        ("far", "34-37"),
        ("{size: 256MiB}", "32-33"),
        ("{size: 257MiB}", "32-34"),
        ("{size: 256MiB, node: 1}", "34-35"),
        ("{size: 128MiB, among: far}", "34"),
        ("first", "32"),
        ("first 3", "32-34"),
        ("last 2", "36-37"),
        ("{blocks: first 2, among: far}", "34-35"),
        ("{blocks: last, node: 0}", "33"),
        ("{node: 1}", "34-37"),
        ("{among: near, node: 0}", "32-33"),
    ],
)
def test_a_step_means_the_blocks_that_it_names(play: Play, selection: str, expected: str) -> None:
    """Numbers and names are taken as they are; by size, place and node, only blocks that are offline are brought online."""
    run = play(SELECTIONS.format(selection=selection), machine=NODES)
    assert run.failed == []
    assert run.texts == ["memory32-33", "memory34-37", f"memory{expected}"]


def test_offline_by_size_takes_the_last_blocks_first(play: Play) -> None:
    """By size and ``last``, offline begins at the end, where the memory is that was added last."""
    run = play(
        """
callbacks: {a: {}}
steps:
  - add: {size: 512MiB}
  - online: 32-35
  - offline: {size: 256MiB}
  - offline: first
"""
    )
    assert [line for line in run.trace if line.startswith("MEM_OFFLINE")] == [
        "MEM_OFFLINE(-1,-1) memory35 a: OK",
        "MEM_OFFLINE(-1,-1) memory34 a: OK",
        "MEM_OFFLINE(-1,-1) memory1 a: OK",
    ], "memory0 lies in two zones and has holes, so nobody means it"


def test_as_names_the_blocks_that_a_step_chose(play: Play) -> None:
    """The name stands for these blocks in later steps, files and expectations, also when they have left."""
    run = play(
        """
steps:
  - add: {size: 256MiB}
    as: new
  - online: {blocks: last, among: new}
    as: newer
    expect: {files: {$newer/state: online, $new/state: offline}, blocks: {new: offline, newer: online}}
  - write: {file: $newer/state, text: offline}
  - read: $newer/phys_index
  - remove: new
    expect: {blocks: {new: absent}}
"""
    )
    assert run.failed == [("state of memory33", "offline", "online")]
    assert run.texts == ["memory32-33", "memory33", "00000021"]


@pytest.mark.parametrize(
    ("steps", "line", "word"),
    [
        ("- offline: new", 3, "given by an earlier step"),
        ("- online: {blocks: first, among: new}", 3, "given by an earlier step"),
        ("- online: first", 3, "no more than 0 blocks"),
        ("- offline: {size: 64GiB}", 3, "no more than 7 blocks"),
        ("- free: cache", 3, "pages that are allocated"),
        ("- pin: cache", 3, "pages that are allocated"),
        ("- unpin: cache", 3, "pages that are allocated"),
        ("- signal: worker", 3, "a thread"),
        ("- note: x\n  expect: {blocks: {new: online}}", 4, "given by an earlier step"),
    ],
)
def test_a_step_that_asks_for_what_is_not_there_is_a_wrong_scenario(play: Play, steps: str, line: int, word: str) -> None:
    """The file is wrong, and is told so with the line."""
    with pytest.raises(ScenarioError) as caught:
        play(f"steps:\n{steps}\n")
    assert caught.value.line == line
    assert word in caught.value.expected


# -- pages and threads


def test_a_signal_ends_an_offline_that_waits_for_a_pinned_page(play: Play) -> None:
    """A thread's step may go on after others have begun; its result is compared when it ends."""
    run = play(
        """
callbacks: {a: {}}
steps:
  - add: {size: 128MiB}
  - online: 32
  - allocate: {name: x, size: 8KiB, owner: me, blocks: 32, pinned: true}
  - offline: 32
    thread: worker
    expect: {result: EINTR, trace: ["MEM_GOING_OFFLINE(-1,-1) memory32 a: OK"]}
  - read: memory32/state
    expect: {text: going-offline}
  - signal: worker
    expect: {trace: ["MEM_CANCEL_OFFLINE(-1,-1) memory32 a: OK"], blocks: {32: online}}
"""
    )
    assert run.failed == []
    assert run.results == {1: "ok", 2: "ok", 3: "ok", 4: "EINTR", 5: "ok", 6: "ok"}
    ended = [(event["number"], event["thread"]) for event in run.of("result")]
    assert ended[-2:] == [(4, "worker"), (6, "main")]


def test_unpinning_lets_a_waiting_offline_go_on(play: Play) -> None:
    """The page moves to another block, and free gives it back."""
    run = play(
        """
steps:
  - add: {size: 128MiB}
  - online: 32
  - allocate: {name: x, size: 8KiB, blocks: 32}
  - pin: x
  - {offline: 32, thread: worker}
  - unpin: x
    expect: {blocks: {32: offline}}
  - free: x
"""
    )
    assert run.failed == []
    assert sum(block["used_pages"] for block in run.of("machine")[-1]["blocks"]) == 0


def test_a_step_that_never_ends_ends_the_run(play: Play) -> None:
    """Nobody could unpin the page: it is one failure that says who waits for which page of whom; nothing further is played."""
    run = play(
        """
steps:
  - add: {size: 128MiB}
  - online: 32
  - allocate: {name: x, size: 8KiB, blocks: 32, pinned: true, owner: rdma}
  - offline: 32
  - unpin: x
"""
    )
    (failure,) = run.of("failure")
    assert failure["what"] == (
        "the step never ends; give it a thread of its own (thread: NAME), and end its wait later (signal: NAME)"
    )
    assert (failure["line"], failure["expected"], failure["actual"]) == (7, "an end", "main waits for page state")
    assert failure["message"] == (
        "memory32: a signal arrived while page 0x100000 of rdma (movable, 2 pages, pinned) could not be moved; it stays online"
    )
    assert 5 not in run.results
    assert run.kinds[-1] == "end"


@pytest.mark.parametrize(
    ("gives", "uses", "said"),
    [
        ("- add: {size: 100MiB}\n  as: new", "- online: new", "new: step 1 would have named it, and ended with EINVAL"),
        ("- add: {size: 100MiB}\n  as: new", "- read: $new/state", "new: step 1 would have named it, and ended with EINVAL"),
        ("- plug: {name: d, size: 128MiB, node: 9}", "- unplug: d", "d: step 1 would have named it, and ended with EINVAL"),
        ("- allocate: {name: x, size: 4GiB}", "- free: x", "x: step 1 would have named it, and ended with ENOMEM"),
    ],
)
def test_a_name_whose_step_failed_is_a_failed_step(play: Play, gives: str, uses: str, said: str) -> None:
    """The file is right, so whoever uses the name fails with ENOENT, and is told why nothing has it."""
    run = play(f"steps:\n{gives}\n{uses}\n")
    assert run.results[2] == "ENOENT"
    assert run.of("result")[1]["message"] == said
    assert run.failures == 2


def test_blocks_expected_by_a_name_whose_step_failed_are_a_failure(play: Play) -> None:
    """There is nothing to look at, and the reason is told."""
    run = play("steps:\n- add: {size: 100MiB}\n  as: new\n  expect: {result: EINVAL, blocks: {new: offline}}\n")
    assert run.failed == [("expect: blocks", "offline", "new: step 1 would have named it, and ended with EINVAL")]


@pytest.mark.parametrize(
    "step", ["write: {file: $nw/state, text: online}", "read: $nw/state", "note: x\n  expect: {files: {$nw/state: online}}"]
)
def test_a_file_of_a_name_that_no_step_gave_ends_the_run(play: Play, step: str) -> None:
    """As where blocks are meant by such a name."""
    with pytest.raises(ScenarioError, match="'nw' is not valid; expected a name given by an earlier step") as caught:
        play(f"steps:\n- {step}\n")
    assert caught.value.line in {3, 4}


def test_a_step_that_waits_for_another_thread_never_ends(play: Play) -> None:
    """The report names every thread that waits, so that the reader sees the chain."""
    run = play(
        """
steps:
  - add: {size: 256MiB}
  - online: 32
  - allocate: {name: x, size: 8KiB, blocks: 32, pinned: true}
  - {offline: 32, thread: worker}
  - online: 33
"""
    )
    assert run.failed[0][2] == "main waits for device_hotplug_lock, worker waits for page state"


def test_who_waits_at_the_end_is_a_failure(play: Play) -> None:
    """A thread that still waits is named, and then let go: also those behind it, who have nobody to wait for then."""
    run = play(
        """
callbacks: {}
steps:
  - add: {size: 256MiB}
  - online: 32-33
  - allocate: {name: x, size: 8KiB, blocks: 32, pinned: true}
  - allocate: {name: y, size: 8KiB, blocks: 33, pinned: true}
  - {offline: 32, thread: A}
  - {offline: 33, thread: B}
"""
    )
    assert run.failed == [
        ("thread A still waits for page state at the end", "nobody waits", "A waits for page state"),
        ("thread B still waits for device_hotplug_lock at the end", "nobody waits", "B waits for device_hotplug_lock"),
    ]
    assert [failure["line"] for failure in run.of("failure")] == [9, 10]
    assert run.results == {1: "ok", 2: "ok", 3: "ok", 4: "ok", 5: "EINTR", 6: "EINTR"}
    assert run.states() == {32: "online", 33: "online"}


def test_a_file_that_cannot_be_read_now_is_a_failure_and_no_hang(play: Play) -> None:
    """``online`` waits for its block's lock, so an expectation about it during a change says who waits."""
    run = play(
        """
steps:
  - add: {size: 128MiB}
  - online: 32
  - allocate: {name: x, size: 8KiB, blocks: 32, pinned: true}
  - offline: 32
    thread: worker
    expect: {result: EINTR, files: {memory32/online: "1", memory32/state: going-offline}}
  - signal: worker
"""
    )
    assert [(what, str(actual)) for what, _, actual in run.failed] == [
        ("memory32/online", "no answer: its reader waits for memory32/device_lock"),
        ("memory32/state", "no answer: its reader waits for memory32/device_lock"),
    ]


def test_a_sure_deadlock_is_edeadlk(play: Play) -> None:
    """Without device_hotplug_lock a removal and an online can meet head on; one of them gets an error, nobody hangs."""
    run = play(
        """
steps:
  - add: {size: 256MiB}
  - online: 32
  - allocate: {name: x, pages: 1, blocks: 32, pinned: true}
  - {offline: 32, thread: A}
  - {remove: 33, thread: B, expect: EDEADLK}
  - {online: 33, thread: C}
  - unpin: x
    expect: {blocks: {32: offline, 33: online}}
""",
        machine='machine: {nodes: [1GiB], rules: "6.12", device_hotplug_lock: false, '
        "parameters: {memhp_default_state: offline}}\n",
    )
    assert run.failed == []
    (message,) = [event["message"] for event in run.of("result") if event["result"] == "EDEADLK"]
    assert message.splitlines() == [
        "B would wait for memory33/device_lock for ever; it holds cpu_hotplug_lock (read), mem_hotplug_lock",
        "  B waits for memory33/device_lock (acquire), held by C",
        "  C waits for mem_hotplug_lock (block new readers), held by B",
    ]
    (report,) = run.of("lockdep")
    assert report["kind"] == "circular"
    assert sorted(report["classes"]) == ["mem_hotplug_lock", "memory_block device_lock"]


# -- what callbacks do


def test_times_limits_a_reaction_to_the_first_calls(play: Play) -> None:
    """After so many times the callback answers OK."""
    run = play(
        """
callbacks: {a: {MEM_GOING_ONLINE: {answer: BAD, times: 2}}}
steps:
  - add: {size: 128MiB}
  - {online: 32, expect: EPERM}
  - {online: 32, expect: EPERM}
  - online: 32
"""
    )
    assert run.failed == []


def test_a_delay_is_part_of_the_time_of_a_call(play: Play) -> None:
    """The event has the seconds that the callback took."""
    run = play("callbacks: {a: {MEM_ONLINE: {delay: 2ms}}}\nsteps:\n- add: {size: 128MiB}\n- online: 32\n")
    assert run.of("call")[1]["seconds"] >= 0.002


def test_what_a_callback_raises_refuses_or_is_told(play: Play) -> None:
    """Raised while it is asked, it is a refusal; raised while it is told, the change has happened."""
    run = play(
        """
callbacks: {a: {MEM_GOING_ONLINE: {raise: no idea, times: 1}, MEM_ONLINE: {raise: too late}}}
steps:
  - add: {size: 128MiB}
  - {online: 32, expect: EPERM}
  - online: 32
"""
    )
    assert run.failed == []
    assert run.short == [
        "GOING_ONLINE a: raised RuntimeError",
        "CANCEL_ONLINE a: OK",
        "GOING_ONLINE a: OK",
        "ONLINE a: raised RuntimeError",
    ]
    assert [event["error"] for event in run.of("call")] == ["no idea", None, None, "too late"]


def test_a_callback_allocates_from_new_memory_and_frees_what_leaves(play: Play) -> None:
    """``free`` gives back only what lies in the memory that the action is about."""
    run = play(
        """
callbacks:
  a:
    MEM_ONLINE: {allocate: {name: x, size: 1MiB, kind: unmovable}, times: 1}
    MEM_GOING_OFFLINE: {free: [x, y]}
steps:
  - add: {size: 256MiB}
  - online: 32-33
  - offline: 33
  - {offline: 32, expect: EBUSY}
"""
    )
    assert run.deeds == ["a allocated x, 256 unmovable pages"]
    assert run.failed == [], "an unmovable page refuses before anybody is asked"


def test_a_callback_frees_a_pinned_buffer_in_time(play: Play) -> None:
    """Asked, it lets go of the pages that would have kept the block online."""
    run = play(
        """
callbacks:
  a: {MEM_ONLINE: {allocate: {name: x, size: 1MiB, pinned: true}}, MEM_GOING_OFFLINE: {free: x}}
steps:
  - add: {size: 128MiB}
  - online: 32
  - offline: 32
"""
    )
    assert run.failed == []
    assert run.deeds == ["a allocated x, 256 movable pages", "a freed x, 256 pages"]
    kinds = run.kinds
    assert kinds[kinds.index("deed") + 1] == "call", "a deed is heard before the call that it belongs to has ended"


def test_callbacks_come_and_go(play: Play) -> None:
    """Registered twice is EEXIST, unregistered twice ENOENT; who comes back stands behind its equals."""
    run = play(
        """
callbacks: {a: {}, b: {}, c: {registered: false}}
steps:
  - add: {size: 128MiB}
  - register: c
  - {register: c, expect: EEXIST}
  - unregister: a
  - {unregister: a, expect: ENOENT}
  - register: a
  - unregister: b
  - online: 32
"""
    )
    assert run.failed == []
    assert run.short == ["GOING_ONLINE c: OK", "GOING_ONLINE a: OK", "ONLINE c: OK", "ONLINE a: OK"]
    assert [block["name"] for block in run.of("callbacks")[0]["registered"]] == ["a", "b"]


def python_callback(directory: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (directory / "called_by_a_test.py").write_text(source, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "called_by_a_test", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


CALLS = 'callbacks: {a: {call: "called_by_a_test:heard"}}\nsteps:\n- add: {size: 128MiB}\n- {online: 32, expect: ENOMEM}\n'


def test_a_callback_can_be_a_python_function(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``call`` names a function of a module beside the scenario."""
    source = "from memhp import notifier_from_errno\ndef heard(block, action, memory): return notifier_from_errno(-12)\n"
    python_callback(tmp_path, monkeypatch, source)
    run = play(CALLS)
    assert run.short == ["GOING_ONLINE a: ENOMEM", "CANCEL_ONLINE a: ENOMEM"]
    assert run.failed == []
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "AttributeError"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
        ("def heard(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("heard = 5\n", "can be called"),
    ],
)
def test_a_python_function_that_cannot_be_had_is_a_wrong_scenario(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    """Whatever goes wrong while it is imported is told with the callback's line."""
    python_callback(tmp_path, monkeypatch, source)
    with pytest.raises(ScenarioError) as caught:
        play(CALLS)
    assert caught.value.line == 2
    assert reason in caught.value.expected


def test_a_python_callback_that_answers_nothing_refuses(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten return is a wrong answer, and the message says whose."""
    python_callback(tmp_path, monkeypatch, "def heard(block, action, memory): pass\n")
    run = play(CALLS.replace("ENOMEM", "EPERM"))
    assert run.failed == []
    assert "callback a (priority 0) answered None" in run.of("result")[-1]["message"]


def test_a_request_inside_a_callback_is_an_error_and_no_hang(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registering in the middle of a call would wait for its own end: it is refused, and so is the change."""
    source = "def heard(block, action, memory): block.unregister()\n"
    python_callback(tmp_path, monkeypatch, source)
    run = play(CALLS.replace("ENOMEM", "EPERM"))
    assert run.failed == []
    assert run.short == ["GOING_ONLINE a: raised DeadlockError", "CANCEL_ONLINE a: raised DeadlockError"]


# -- machines from files

TREE = {
    "memory/block_size_bytes": "8000000\n",
    "memory/auto_online_blocks": "offline\n",
    **{
        f"memory/memory{number}/{name}": text
        for number, state, zones in [
            (0, "online", "none"),
            (1, "online", "DMA32"),
            (32, "online", "Movable"),
            (33, "offline", "x"),
        ]
        for name, text in [("state", f"{state}\n"), ("phys_index", f"{number:08x}\n"), ("valid_zones", f"{zones}\n")]
    },
    "node/possible": "0-1\n",
    "node/node0/cpulist": "0-1\n",
    "node/node0/distance": "10 20\n",
    "node/node0/memory0": "-> ../../memory/memory0",
    "node/node0/memory1": "-> ../../memory/memory1",
    "node/node1/cpulist": "\n",
    "node/node1/distance": "20 10\n",
    "node/node1/memory32": "-> ../../memory/memory32",
    "node/node1/memory33": "-> ../../memory/memory33",
}


def captured(directory: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Write a captured /sys; None leaves a file out, ``-> TARGET`` is a link."""
    root = directory / "dump"
    for name, text in {**TREE, **(changes or {})}.items():
        path = root / "sys/devices/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None and text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        elif text is not None:
            path.write_text(text, encoding="utf-8")
    return root


FROM = "machine: {from: dump}\n"


def test_a_machine_comes_from_a_captured_copy(play: Play, tmp_path: Path) -> None:
    """The directory is found beside the scenario; blocks, states, zones and nodes are as they were there."""
    captured(tmp_path)
    run = play("steps:\n- offline: 32\n- {online: {blocks: 33, type: online_movable}}\n", machine=FROM)
    assert run.failed == []
    before, after = run.of("machine")
    assert before["source"] == "dump"
    assert [(block["id"], block["node"], block["state"], block["zones"]) for block in before["blocks"]] == [
        (0, 0, "online", ["DMA", "DMA32"]),
        (1, 0, "online", ["DMA32"]),
        (32, 1, "online", ["Movable"]),
        (33, 1, "offline", []),
    ]
    assert run.states("after") == {32: "offline", 33: "online"}
    assert before["nodes"]["has_memory"] == after["nodes"]["has_memory"] == "0-1"
    assert (tmp_path / "dump/sys/devices/system/memory/memory32/state").read_text(encoding="utf-8") == "online\n"


@pytest.mark.parametrize(
    ("changes", "path", "word"),
    [
        ({"memory/block_size_bytes": None}, "memory/block_size_bytes", "can be read"),
        ({"memory/block_size_bytes": ""}, "memory/block_size_bytes", "hexadecimal"),
        ({"memory/block_size_bytes": "0\n"}, "memory/block_size_bytes", "power of two"),
        ({"memory/block_size_bytes": "8000001\n"}, "memory/block_size_bytes", "power of two"),
        ({"memory/memory1/state": None}, "memory/memory1/state", "can be read"),
        ({"memory/memory1/state": ""}, "memory/memory1/state", "empty"),
        ({"memory/memory1/state": "offl"}, "memory/memory1/state", "online, offline"),
        ({"memory/memory1/phys_index": None}, "memory/memory1/phys_index", "can be read"),
        ({"memory/memory1/phys_index": "00000002\n"}, "memory/memory1/phys_index", "the number in the directory"),
        ({"memory/memory1/valid_zones": "Swap\n"}, "memory/memory1/valid_zones", "DMA32"),
        ({"memory/memory01/state": "online\n"}, "memory", "each block once"),
        ({"memory/auto_online_blocks": "maybe\n"}, "memory/auto_online_blocks", "online_movable"),
        ({"node/possible": ""}, "node/possible", "node"),
        ({"node/possible": "1-0\n"}, "node/possible", "ranges"),
        ({"node/node0/distance": "far\n"}, "node/node0/distance", "numbers"),
    ],
)
def test_a_wrong_tree_is_told_with_the_file_in_it(
    play: Play, tmp_path: Path, changes: dict[str, str | None], path: str, word: str
) -> None:
    """Missing, truncated and malformed files are named with the directory and their path in it, and the line that names both."""
    captured(tmp_path, changes)
    with pytest.raises(ScenarioError) as caught:
        play("steps: []\n", machine=FROM)
    assert caught.value.where == f"{tmp_path}/scenario.yaml:1: machine: from"
    assert caught.value.value == "dump"
    assert f"in {tmp_path}/dump, /sys/devices/system/{path}: " in caught.value.expected
    assert word in caught.value.expected


def test_a_directory_without_a_machine_is_wrong(play: Play, tmp_path: Path) -> None:
    """``from`` names a directory that isn't there, and there is no ``otherwise``."""
    with pytest.raises(ScenarioError) as caught:
        play("steps: []\n", machine=FROM)
    assert str(caught.value) == (
        f"{tmp_path}/scenario.yaml:1: machine: from: 'dump' is not valid; expected host, or a directory with a copy of /sys; "
        f"there is no {tmp_path}/dump/sys/devices/system/memory"
    )


def test_otherwise_stands_in_where_there_are_no_blocks(play: Play, tmp_path: Path) -> None:
    """The description is used where the tree has no memory blocks, and only there."""
    machine = "machine: {from: dump, otherwise: {nodes: [1GiB]}}\n"
    (tmp_path / "dump/sys/devices/system/memory").mkdir(parents=True)
    run = play("steps: []\n", machine=machine)
    assert (run.of("machine")[0]["source"], len(run.of("machine")[0]["blocks"])) == ("description", 8)
    captured(tmp_path)
    run = play("steps: []\n", machine=machine)
    assert (run.of("machine")[0]["source"], len(run.of("machine")[0]["blocks"])) == ("dump", 4)


def test_devices_that_a_machine_from_files_can_not_have_are_told(play: Play, tmp_path: Path) -> None:
    """With file and line: it may have other nodes than the description that stands in for it."""
    captured(tmp_path)
    described = "otherwise: {nodes: [1GiB, 0, 0, 0, 0, 0]}, virtio_mem: [{size: 1GiB, node: 5}]"
    with pytest.raises(ScenarioError, match=r"\.yaml:1: machine: virtio_mem: 'vm0' .*node 5 is not possible"):
        play("steps: []\n", machine=f"machine: {{from: dump, {described}}}\n")


def test_the_helper_says_what_it_promises() -> None:
    """The short forms that these tests compare are made of the events alone."""
    call = {"event": "call", "action": "MEM_ONLINE", "status_change_nid_normal": -1, "status_change_nid": 1}
    run = Played([{**call, "blocks": "memory32", "callback": "a", "answer": "OK"}], 0)
    assert (run.trace, run.short) == (["MEM_ONLINE(-1,1) memory32 a: OK"], ["ONLINE a: OK"])
    assert MACHINE == "machine: {nodes: [1GiB]}\n"


def test_at_the_end_a_step_that_waits_for_page_after_page_is_released_from_all(play: Play) -> None:
    """Each block of the DIMM has a page that can't move; a signal ends one wait, and two passes over two blocks are four."""
    run = play(
        """
steps:
  - plug: {name: stick, size: 256MiB}
  - allocate: {name: one, pages: 1, blocks: 32, pinned: true, owner: rdma}
  - allocate: {name: two, pages: 1, blocks: 33, pinned: true, owner: rdma}
  - unplug: stick
    thread: admin
""",
        machine="machine: {nodes: [1GiB], parameters: {memhp_default_state: online_movable}}\n",
    )
    assert run.failed == [("thread admin still waits for page state at the end", "nobody waits", "admin waits for page state")]
    assert run.results == {1: "ok", 2: "ok", 3: "ok", 4: "EBUSY"}
    assert run.states() == {32: "online", 33: "online"}


# -- whatever is played, it ends

STEPS = [
    *("add: {size: 256MiB}", "add: {size: 128MiB, node: 1}", "remove: 32", "remove: 32-33", "online: 32", "online: 33"),
    *("online: {blocks: 33, type: online_movable}", "offline: 32", "offline: 33", "offline: 3", "read: memory32/online"),
    *("write: {file: memory32/online, text: '1'}", "write: {file: memory33/state, text: offline}", "free: x", "unpin: x"),
    *("allocate: {name: x, pages: 2, blocks: 32-33}", "pin: x", "allocate: {name: x, pages: 1, blocks: 33, pinned: true}"),
    *("signal: T", "signal: U", "register: b", "unregister: b"),
]
CALLBACKS = "callbacks: {a: {MEM_GOING_OFFLINE: {answer: BAD, times: 1}}, b: {MEM_ONLINE: BAD, MEM_GOING_OFFLINE: {free: x}}}\n"
whatever = st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(["", "T", "U"])), max_size=14)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=whatever, rules=st.sampled_from(list(Rules)), locked=st.booleans())
def test_any_steps_in_any_threads_come_to_an_end(
    tmp_path: Path, steps: list[tuple[str, str]], rules: Rules, *, locked: bool
) -> None:
    """A run ends with its last event, or the scenario is wrong; with device_hotplug_lock there is never a lockdep report."""
    listed = "".join(f"- {step}\n" + (f"  thread: {thread}\n" if thread else "") for step, thread in steps)
    machine = f"machine: {{nodes: [1GiB, 0], device_hotplug_lock: {str(locked).lower()}}}\n"
    try:
        run = play_text(tmp_path, f"{CALLBACKS}steps:\n{listed or '- note: x'}\n", machine=machine, rules=rules)
    except ScenarioError:
        return
    assert run.kinds[-1] == "end"
    if locked:
        assert run.of("lockdep") == []
