"""Helpers for tests of scenarios: play a text, and say in few lines what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memhp import Rules
from memhp.scenario import Player, load

MACHINE = "machine: {nodes: [1GiB]}\n"
"""Its blocks are memory0 to memory7; memory that is added begins at memory32."""


class Played:
    """The events of one run."""

    def __init__(self, events: list[dict[str, Any]], failures: int) -> None:
        self.events = events
        self.failures = failures

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Give the events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def kinds(self) -> list[str]:
        """The kinds of all events, in order."""
        return [event["event"] for event in self.events]

    @property
    def trace(self) -> list[str]:
        """The calls as expectations write them, put together from the events."""
        return [
            f"{call['action']}({call['status_change_nid_normal']},{call['status_change_nid']}) "
            f"{call['blocks']} {call['callback']}: {call['answer']}"
            for call in self.of("call")
        ]

    @property
    def short(self) -> list[str]:
        """The calls without what rarely matters: ``GOING_ONLINE a: OK``."""
        return [f"{call['action'].removeprefix('MEM_')} {call['callback']}: {call['answer']}" for call in self.of("call")]

    @property
    def results(self) -> dict[int, str]:
        """The results by the number of the step."""
        return {event["number"]: event["result"] for event in self.of("result")}

    @property
    def texts(self) -> list[str]:
        """What the steps had to say, those that said something."""
        return [event["text"].strip() for event in self.of("result") if event["text"]]

    @property
    def deeds(self) -> list[str]:
        """What callbacks did besides answering."""
        return [f"{event['callback']} {event['text']}" for event in self.of("deed")]

    @property
    def failed(self) -> list[tuple[str, object, object]]:
        """The expectations that did not hold: what, expected, actual."""
        return [(event["what"], event["expected"], event["actual"]) for event in self.of("failure")]

    def states(self, moment: str = "after") -> dict[int, str]:
        """Give the states of blocks from 8 on, by id; memory0 to memory7 are online in every machine here."""
        (machine,) = [event for event in self.of("machine") if event["moment"] == moment]
        return {block["id"]: block["state"] for block in machine["blocks"] if block["id"] > 7}


Play = Callable[..., Played]


def play_text(directory: Path, text: str, *, machine: str = MACHINE, rules: Rules | None = None) -> Played:
    """Play a scenario; ``machine`` is put before ``text``."""
    path = directory / "scenario.yaml"
    path.write_text(machine + text, encoding="utf-8")
    events: list[dict[str, Any]] = []
    failures = Player(load(path), events.append, rules=rules).play()
    return Played(events, failures)
