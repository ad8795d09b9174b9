"""A block online and offline again, through the tree, with three callbacks: under each rules, lockdep off and on."""

from __future__ import annotations

from itertools import repeat

from bench.measure import Figure, Runner, heading, median, quiet, race, ratio, ratio_figure, table
from memhp import NOTIFY_OK, Machine, Rules
from memhp.notifier import NotifierBlock, NotifyResult

BLOCK = 128 << 20
CALLBACKS = 3
TARGET = 2000


def run() -> list[Figure]:
    """Race all six, and a large machine, for which the issue sets no target."""
    big = "documented, 1 TiB"
    machines = {_name(rules, lockdep): _machine(rules, lockdep=lockdep) for rules in Rules for lockdep in (False, True)}
    machines[big] = _machine(Rules.DOCUMENTED, "1TiB")
    heading(f"online + offline of an empty 128 MiB block through the tree, {CALLBACKS} callbacks")
    with quiet():
        results = race({name: _runner(machine) for name, machine in machines.items()})
    rates = {name: median([1 / seconds for seconds in rounds]) for name, rounds in results.items()}
    shares = {rules: ratio(results, _name(rules, True), _name(rules, False)) for rules in Rules}
    rows = [
        (rules.value.title, f"{rates[_name(rules, False)]:,.0f}", f"{rates[_name(rules, True)]:,.0f}", f"{share:.2f} x")
        for rules, share in shares.items()
    ]
    rows.append(("as documented, 1 TiB in 8,192 blocks", f"{rates[big]:,.0f}", "", ""))
    table(("", "pairs/s", "with lockdep", "slower"), rows)
    for name, machine in machines.items():
        if machine.dep is not None and machine.dep.reports:
            print(f"{name}: lockdep has {len(machine.dep.reports)} reports")
    figures = []
    for rules, share in shares.items():
        rate = rates[_name(rules, False)]
        figures.append(Figure(f"pairs/s, {rules.value.title}", f">= {TARGET:,}", f"{rate:,.0f}", rate >= TARGET))
        figures.append(ratio_figure(f"pairs, {rules.value.title}, lockdep on / off", 3, share))
    return figures


def _name(rules: Rules, lockdep: bool) -> str:  # noqa: FBT001 - it is one half of the name
    return f"{rules.text}{', lockdep' if lockdep else ''}"


def _machine(rules: Rules, memory: str = "4GiB", *, lockdep: bool = False) -> Machine:
    machine = Machine.boot(memory, block_size=BLOCK, rules=rules, lockdep=lockdep)
    for _ in range(CALLBACKS):

        def callback(block: NotifierBlock, action: object, arg: object) -> NotifyResult:
            return NOTIFY_OK

        machine.hotplug_memory_notifier(callback)
    return machine


def _runner(machine: Machine) -> Runner:
    (added,) = machine.add_memory(0, machine.next_room(BLOCK), BLOCK)
    state = f"/sys/devices/system/memory/memory{added}/state"
    tree = machine.tree
    if tree.read(state) == "online\n":
        tree.write(state, "offline")

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            tree.write(state, "online")
            tree.write(state, "offline")

    return runner
