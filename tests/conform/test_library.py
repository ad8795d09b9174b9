"""The library of scenarios: what both kernels did in each, and what the model does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memhp.cli.conform import LIBRARY
from memhp.conform import Recording, differences
from memhp.conform.play import play_model
from memhp.conform.recording import fingerprint
from memhp.kernel import Rules
from memhp.scenario import load
from memhp.scenario.model import Scenario

FACTS = Path(__file__).parents[2] / "docs" / "linux-behaviour.md"
FILES = sorted(LIBRARY.glob("*.yaml"))
KERNELS = {"6.1": Rules.LINUX_6_1, "6.12": Rules.LINUX_6_12}


def shown(scenario: Scenario) -> set[str]:
    """Give the numbers of the facts that the scenario shows."""
    found = re.search(r"^Facts: (.+)$", scenario.about, re.MULTILINE)
    assert found, f"{scenario.file.name} does not say which facts it shows"
    return set(found[1].split())


@pytest.mark.parametrize("series", KERNELS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_model_does_what_the_kernel_did(file: Path, series: str) -> None:
    """Every result, text, notifier call, uevent and state, at every step, as recorded from the kernel."""
    recording = Recording.load(LIBRARY / "recorded" / series / f"{file.stem}.json")
    assert recording.scenario == fingerprint(file), "the scenario has changed: memhp conform --live"
    assert recording.version.startswith(f"{series}.")
    found = differences(play_model(load(file), KERNELS[series]), recording.steps)
    assert [str(difference) for difference in found] == []


def test_each_recording_has_its_scenario() -> None:
    """Nothing is left of scenarios that are gone."""
    assert {path.stem for path in LIBRARY.glob("recorded/*/*.json")} == {file.stem for file in FILES}


def test_the_facts_that_scenarios_show_are_documented() -> None:
    """With the numbers of docs/linux-behaviour.md, or 0 for what differs between the kernels' configurations."""
    known = set(re.findall(r"^\*\*(\d+\.\d+[a-z]?)\*\*", FACTS.read_text(encoding="utf-8"), re.MULTILINE)) | {"0"}
    assert {file.stem: unknown for file in FILES if (unknown := shown(load(file)) - known)} == {}


def test_the_library_is_large_enough_to_be_believed() -> None:
    """At least 30 scenarios; every section that can be seen from outside of a kernel has several."""
    sections = [number.partition(".")[0] for file in FILES for number in shown(load(file))]
    assert len(FILES) >= 30
    assert {section for section in sections if sections.count(section) >= 3} >= {"2", "3", "5", "6", "8", "10", "11", "13"}


@pytest.mark.parametrize("file", ["online-kernel-first", "auto-online", "unplug-refused"])
def test_the_rules_of_the_other_kernel_are_told_apart(file: str) -> None:
    """A comparison that can't fail proves nothing: 6.1's rules don't pass for 6.12."""
    recording = Recording.load(LIBRARY / "recorded" / "6.12" / f"{file}.json")
    found = differences(play_model(load(LIBRARY / f"{file}.yaml"), Rules.LINUX_6_1), recording.steps)
    assert "MEM_PREPARE_ONLINE" in " ".join(difference.real for difference in found)
