"""The machine that a scenario begins with."""

from __future__ import annotations

from pathlib import Path

from memhp.abi.paths import MEMORY
from memhp.abi.tree import DirTree
from memhp.errors import InvalidInput, ScenarioError
from memhp.kernel import Machine, Rules
from memhp.locking import Lockdep
from memhp.scenario.model import Scenario

__all__ = ["make_machine"]


def make_machine(scenario: Scenario, rules: Rules, lockdep: Lockdep) -> tuple[Machine, str]:
    """Boot the machine that is described, or that the files of ``from`` describe; also says which: ``description``, or ``from``.

    Raises:
        ScenarioError: ``from`` names no copy of /sys, or one that is wrong; with the line, the directory and the file in it.
    """
    spec = scenario.machine
    lock = spec.device_hotplug_lock
    root = Path("/") if spec.source == "host" else scenario.file.parent / spec.source
    tree = DirTree(root)
    if not spec.source or (spec.description and not tree.exists(f"{MEMORY}/block_size_bytes")):
        return Machine.boot(**spec.description, rules=rules, device_hotplug_lock=lock, lockdep=lockdep), "description"
    if not tree.exists(MEMORY):
        raise _wrong(scenario, f"host, or a directory with a copy of /sys; there is no {str(root).rstrip('/')}{MEMORY}")
    try:
        return Machine.from_tree(tree, rules=rules, device_hotplug_lock=lock, lockdep=lockdep), spec.source
    except InvalidInput as error:
        raise _wrong(scenario, f"a machine's files; in {root}, {error}") from error


def _wrong(scenario: Scenario, expected: str) -> ScenarioError:
    spec = scenario.machine
    return ScenarioError(spec.source, str(scenario.file), spec.source_line, expected, "machine: from")
