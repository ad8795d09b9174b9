"""What one step did, as far as it can be seen from outside of a kernel: the form in which machines are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memhp.scenario.play import CHAIN

__all__ = ["Observed", "observe"]

Event = dict[str, Any]


@dataclass(slots=True)
class Observed:
    """What was seen of one step; number 0 is the machine before the first one.

    Attributes:
        number: the step's.
        line: where it stands in the scenario.
        shown: the step in words.
        result: ``ok``, or the name of an errno.
        text: what there was to say of it, such as the text that was read.
        heard: calls of the notifier chain and uevents, in their order.
        state: what userland sees afterwards (:func:`memhp.abi.state.machine_state`), all of it.
    """

    number: int
    line: int = 0
    shown: str = "the machine at the beginning"
    result: str = ""
    text: str = ""
    heard: list[str] = field(default_factory=list)
    state: dict[str, str] = field(default_factory=dict)


def observe(events: Iterable[Event]) -> list[Observed]:
    """Fold the events of a run, of the model or of a guest, that was watched."""
    steps = [Observed(0)]
    for event in events:
        step = steps[-1]
        kind = event["event"]
        if kind == "step":
            steps.append(Observed(event["number"], event["line"], event["text"], state=dict(step.state)))
        elif kind == "call" and event["callback"] == CHAIN:
            step.heard.append(_call(event))
        elif kind == "uevent":
            step.heard.append(f"{event['action']}@{event['devpath']}")
        elif kind == "result":
            step.result, step.text = event["result"], event["text"].strip()
        elif kind == "state":
            apply(step.state, event["changes"])
    return steps


def apply(state: dict[str, str], changes: Mapping[str, str | None]) -> None:
    """Bring a state up to date; None takes away."""
    for key, value in changes.items():
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


def _call(event: Event) -> str:
    nids = f"({event['status_change_nid_normal']},{event['status_change_nid']})"
    return f"{event['action']}{nids} pfn {event['start_pfn']:#x} + {event['nr_pages']:#x}"
