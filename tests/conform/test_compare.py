"""Where two runs differ: what is compared, and how it is said."""

from __future__ import annotations

from typing import Any

from memhp.conform import Observed, differences, observe

ZONE = "zone 1/Normal"


def run(*steps: dict[str, Any], first: dict[str, str] | None = None) -> list[Observed]:
    """Make a run of steps; each gives what is not the default."""
    state = first or {}
    return [
        Observed(0, state=state),
        *(Observed(n, 10 + n, f"step {n}", **{"result": "ok", **step}) for n, step in enumerate(steps, 1)),
    ]


def shown(ours: list[Observed], theirs: list[Observed]) -> list[str]:
    return [f"{found.number} {found.what}: {found.model} / {found.real}" for found in differences(ours, theirs)]


def test_equal_runs_do_not_differ() -> None:
    """No difference, no word."""
    assert shown(run({"result": "EBUSY"}, {"text": "online"}), run({"result": "EBUSY"}, {"text": "online"})) == []


def test_each_kind_of_difference_is_said_with_both_sides() -> None:
    """Result, text, what was heard from the first difference on, state, in the order of the steps."""
    ours = run({"heard": ["a", "b", "c"]}, {"text": "1", "state": {"memory32": "offline"}})
    theirs = run({"result": "EBUSY", "heard": ["a", "x"]}, {"text": "2", "state": {"memory33": "offline"}})

    assert shown(ours, theirs) == [
        "1 result: ok / EBUSY",
        "1 notifier calls and uevents from number 2 on: b, c / x",
        "2 text: 1 / 2",
        "2 memory32: offline / (absent)",
        "2 memory33: (absent) / offline",
    ]


def test_what_only_one_of_them_heard_is_a_difference() -> None:
    """Also at the end."""
    assert shown(run({"heard": ["a"]}), run({"heard": ["a", "b"]})) == [
        "1 notifier calls and uevents from number 2 on: nothing more / b"
    ]


def test_a_difference_that_lasts_is_said_once_and_again_when_it_changes() -> None:
    """State is reported where it begins to differ."""
    ours = run({"state": {"m": "1"}}, {"state": {"m": "1"}}, {"state": {"m": "1"}})
    theirs = run({"state": {"m": "2"}}, {"state": {"m": "2"}}, {"state": {"m": "3"}})
    assert shown(ours, theirs) == ["1 m: 1 / 2", "3 m: 1 / 3"]


def test_memory_that_holds_the_kernel_counts_by_how_it_changes() -> None:
    """MemTotal and managed pages begin elsewhere on a real kernel; the rest of a zone's numbers does not."""
    ours = run(
        {"state": {"MemTotal": "600", ZONE: "spanned 9 present 8 managed 7"}},
        first={"MemTotal": "500", ZONE: "spanned 5 present 4 managed 4"},
    )
    theirs = run(
        {"state": {"MemTotal": "550", ZONE: "spanned 9 present 9 managed 5"}},
        first={"MemTotal": "450", ZONE: "spanned 5 present 4 managed 2"},
    )
    assert shown(ours, theirs) == [f"1 {ZONE}: spanned 9 present 8 managed +3 / spanned 9 present 9 managed +3"]


def test_a_run_that_ended_early_differs() -> None:
    """A step that was never played is no agreement."""
    assert shown(run({}), run({}, {})) == ["2 the number of steps that were played: 1 / 2"]


def test_events_are_folded_into_steps() -> None:
    """Only calls of the whole chain, uevents, results and states count; a state is all that was said so far."""
    events: list[dict[str, Any]] = [
        {"event": "scenario", "title": "x"},
        {"event": "state", "changes": {"memory1": "online 1 DMA32", "online": "0"}},
        {"event": "step", "number": 1, "line": 7, "text": "offline 1"},
        {
            "event": "call",
            "action": "MEM_GOING_OFFLINE",
            "start_pfn": 32768,
            "nr_pages": 32768,
            "status_change_nid_normal": -1,
            "status_change_nid": 1,
            "callback": "memory_chain",
        },
        {"event": "call", "callback": "somebody"},
        {"event": "uevent", "action": "offline", "devpath": "/devices/system/memory/memory1"},
        {"event": "result", "result": "ok", "text": " memory1\n"},
        {"event": "state", "changes": {"memory1": "offline 0 DMA32 Movable", "online": None}},
    ]
    assert observe(events) == [
        Observed(0, state={"memory1": "online 1 DMA32", "online": "0"}),
        Observed(
            1,
            7,
            "offline 1",
            "ok",
            "memory1",
            ["MEM_GOING_OFFLINE(-1,1) pfn 0x8000 + 0x8000", "offline@/devices/system/memory/memory1"],
            {"memory1": "offline 0 DMA32 Movable"},
        ),
    ]
