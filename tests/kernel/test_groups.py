"""Memory groups, and the policy auto-movable, which looks at them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memhp import Machine, MhpFlags, Rules
from memhp.kernel.boot import Parameters
from memhp.units import Pfn
from support import ALL, BLOCK, GIB, PARAMETERS, Boot, refusal, snapshot, valid_zones, write

ROOM = 4 * GIB
PAGES = BLOCK >> 12
POLICY = {
    "memhp_default_state": "offline",
    "memory_hotplug.online_policy": "auto-movable",
    "memory_hotplug.auto_movable_numa_aware": "N",
}


def automatic(boot: Boot, rules: Rules, ratio: int, **more: str) -> Machine:
    """Boot the 768 MiB of the recorded guest, 196510 pages of them early kernel memory, with the policy auto-movable."""
    names = {f"memory_hotplug.{name}": value for name, value in {"auto_movable_ratio": str(ratio), **more}.items()}
    machine = boot([{"memory": 805175296, "cpus": 1}, 0], rules=rules, parameters={**POLICY, **names})
    assert sum(zone.present for zone in machine.nodes[0].zones) == 196510 - 32  # 32 pages are ACPI's on that guest
    return machine


def add(machine: Machine, group: int, first: int, count: int) -> list[int]:
    return [*machine.add_memory(group, first * BLOCK, count * BLOCK, flags=MhpFlags.NID_IS_MGID)]


def online(machine: Machine, *blocks: int) -> list[str]:
    """Bring blocks online untyped, and say to which zones they came."""
    for block in blocks:
        write(machine, f"memory{block}/state", "online")
    return [valid_zones(machine, block) for block in blocks]


def defaults(machine: Machine, *blocks: int) -> list[str]:
    return [valid_zones(machine, block).split()[0] for block in blocks]


# -- registering


@pytest.mark.fact("6.8")
def test_groups_get_the_lowest_free_number(boot: Boot) -> None:
    """From 0, static and dynamic ones together; a number that was given back is used again."""
    groups = boot(["1GiB", 0]).groups
    assert [groups.register_static(0, 1), groups.register_dynamic(1, PAGES), groups.register_static(1, 5)] == [0, 1, 2]
    groups.unregister(1)
    groups.unregister(0)
    assert [groups.register_static(1, 7), groups.register_static(1, 8), groups.register_static(1, 9)] == [0, 1, 3]
    assert [(group.id, group.nid, group.max_pages) for group in groups] == [(0, 1, 7), (1, 1, 8), (2, 1, 5), (3, 1, 9)]


@pytest.mark.fact("6.8")
def test_malformed_groups_are_einval(boot: Boot) -> None:
    """A static one without pages, a unit that is no power of two or smaller than a block, an impossible node."""
    groups = boot(["1GiB", 0]).groups
    assert [refusal(groups.register_static, nid, pages) for nid, pages in [(0, 0), (0, -1), (2, 1), (-1, 1)]] == ["EINVAL"] * 4
    units = [0, PAGES // 2, PAGES + 1, 3 * PAGES, -PAGES]
    assert [refusal(groups.register_dynamic, 0, unit) for unit in units] == ["EINVAL"] * 5
    assert refusal(groups.register_dynamic, 2, PAGES) == "EINVAL"
    assert list(groups) == []


@pytest.mark.fact("6.8")
def test_a_group_with_blocks_can_not_be_unregistered(boot: Boot) -> None:
    """EBUSY, also while they are offline; EINVAL if there is no such group."""
    machine = boot(["1GiB", 0], parameters="memhp_default_state=offline")
    group = machine.groups.register_static(1, 2 * PAGES)
    add(machine, group, 32, 2)
    assert refusal(machine.groups.unregister, group) == "EBUSY"
    machine.remove_memory(ROOM, BLOCK)
    assert refusal(machine.groups.unregister, group) == "EBUSY"
    machine.remove_memory(ROOM + BLOCK, BLOCK)
    machine.groups.unregister(group)
    assert [refusal(machine.groups.unregister, number) for number in (group, -1)] == ["EINVAL", "EINVAL"]


# -- adding to one


@ALL
@pytest.mark.fact("6.8", "3.18", "3.21")
def test_memory_of_a_group_is_on_the_groups_node(boot: Boot, rules: Rules) -> None:
    """With NID_IS_MGID (4) the number is the group's, and the node is what the group says."""
    machine = boot(["1GiB", 0], rules=rules, parameters="memhp_default_state=offline")
    machine.groups.register_static(0, PAGES)
    group = machine.groups.register_static(1, PAGES)
    machine.add_memory(group, ROOM, BLOCK, flags=4)
    block = machine.block(32)
    assert (block.nid, block.group) == (1, machine.groups.find(group))


@ALL
@pytest.mark.fact("3.18")
def test_an_unknown_group_is_einval_after_overlap_and_alignment(boot: Boot, rules: Rules) -> None:
    """Nothing is changed by any of these."""
    machine = boot(["1GiB", 0], rules=rules)
    before = snapshot(machine)

    def wrong(start: int, size: int) -> str:
        return refusal(lambda: machine.add_memory(7, start, size, flags=MhpFlags.NID_IS_MGID))

    assert [wrong(ROOM, 0), wrong(GIB - BLOCK, 2 * BLOCK), wrong(ROOM + 4096, BLOCK)] == ["E2BIG", "EEXIST", "EINVAL"]
    assert wrong(ROOM, BLOCK) == "EINVAL"
    assert snapshot(machine) == before


@ALL
@pytest.mark.fact("6.8")
def test_a_group_counts_its_pages_that_are_online(boot: Boot, rules: Rules) -> None:
    """By kind of zone; a refused request counts nothing."""
    machine = boot(["1GiB", 0], rules=rules, parameters="memhp_default_state=offline")
    number = machine.groups.register_static(1, 3 * PAGES)
    add(machine, number, 32, 3)
    group = machine.groups.find(number)
    assert group is not None
    write(machine, "memory32/state", "online_movable")
    write(machine, "memory33/state", "online_kernel")
    write(machine, "memory34/state", "online_kernel")
    assert (group.present_kernel_pages, group.present_movable_pages) == (2 * PAGES, PAGES)
    machine.alloc_pages(1, "unmovable", blocks=[33])
    assert refusal(write, machine, "memory33/state", "offline") == "EBUSY"
    assert (group.present_kernel_pages, group.present_movable_pages) == (2 * PAGES, PAGES)
    write(machine, "memory32/state", "offline")
    write(machine, "memory34/state", "offline")
    assert (group.present_kernel_pages, group.present_movable_pages) == (PAGES, 0)


# -- auto-movable: static groups


@ALL
@pytest.mark.fact("6.5", "6.6")
@pytest.mark.parametrize(("ratio", "zone"), [(66, "Normal"), (67, "Movable")])
def test_a_static_group_goes_to_movable_as_a_whole_or_not_at_all(boot: Boot, rules: Rules, ratio: int, zone: str) -> None:
    """Four blocks need 131072 pages up front: 66 % of 196478 are too few, 67 % are enough (observed on both kernels)."""
    machine = automatic(boot, rules, ratio)
    add(machine, machine.groups.register_static(1, 4 * PAGES), 32, 4)
    assert online(machine, 32, 33, 34, 35) == [zone] * 4


@ALL
@pytest.mark.fact("6.5")
def test_one_kernel_block_makes_the_rest_of_a_static_group_kernel_memory(boot: Boot, rules: Rules) -> None:
    """Until it is offline again."""
    machine = automatic(boot, rules, 301)
    add(machine, machine.groups.register_static(1, 4 * PAGES), 32, 4)
    write(machine, "memory32/state", "online_kernel")
    assert defaults(machine, 33, 34, 35) == ["Normal"] * 3
    write(machine, "memory32/state", "offline")
    assert defaults(machine, 32, 33, 34, 35) == ["Movable"] * 4


@ALL
@pytest.mark.fact("6.5")
def test_a_static_group_that_has_more_than_it_said_counts_what_is_there(boot: Boot, rules: Rules) -> None:
    """A page at most, and four blocks: the kernel's unsigned numbers add up to one page each time, so all are allowed."""
    machine = automatic(boot, rules, 1)
    add(machine, machine.groups.register_static(1, 1), 32, 4)
    assert online(machine, 32, 33, 34, 35) == ["Movable"] * 4


@ALL
@pytest.mark.fact("6.5")
@pytest.mark.parametrize(("other", "zone"), [("online_movable", "Normal"), ("online_kernel", "Movable")])
def test_what_a_static_group_has_in_movable_is_not_needed_again(boot: Boot, rules: Rules, other: str, zone: str) -> None:
    """Five blocks at most, of which two went to Movable by name: 100 % allow the five (163840 of 196478), but not a sixth."""
    machine = automatic(boot, rules, 100)
    machine.add_memory(1, 3 * ROOM, BLOCK)
    write(machine, "memory96/state", other)
    add(machine, machine.groups.register_static(1, 5 * PAGES), 32, 5)
    for block in (32, 33):
        write(machine, f"memory{block}/state", "online_movable")
    assert online(machine, 34) == [zone]


@ALL
@pytest.mark.fact("6.5")
def test_cma_counts_as_movable(boot: Boot, rules: Rules) -> None:
    """Not as early kernel memory: at 34 % two blocks fit into 196478 pages, but not beside two pageblocks of CMA."""
    machine = automatic(boot, rules, 34)
    machine.add_memory(1, ROOM, 2 * BLOCK)
    assert online(machine, 32) == ["Movable"]
    assert defaults(machine, 33) == ["Movable"]  # 65536 <= 34 * 196478 / 100 = 66802
    machine.pages.reserve_cma(Pfn(0x8000), 512)
    assert defaults(machine, 33) == ["Movable"]  # 65536 + 512 <= 34 * 195966 / 100 = 66628
    machine.pages.reserve_cma(Pfn(0x8000), 512)
    assert defaults(machine, 33) == ["Movable"]  # it is CMA's already
    machine.pages.reserve_cma(Pfn(0x8200), 512)
    assert defaults(machine, 33) == ["Normal"]  # 65536 + 1024 > 34 * 195454 / 100 = 66454


@ALL
@pytest.mark.fact("6.6")
def test_hotplugged_kernel_memory_outside_of_a_dynamic_group_allows_nothing(boot: Boot, rules: Rules) -> None:
    """The limit stays 17 % of the boot memory, one block, however much kernel memory comes."""
    machine = automatic(boot, rules, 17)
    machine.add_memory(1, ROOM, 8 * BLOCK)
    for block in range(32, 37):
        write(machine, f"memory{block}/state", "online_kernel")
    assert online(machine, 37, 38, 39) == ["Movable", "Normal", "Normal"]


# -- auto-movable: dynamic groups


@ALL
@pytest.mark.fact("6.11")
def test_a_dynamic_group_whose_unit_is_a_block_fills_up_to_the_ratio(boot: Boot, rules: Rules) -> None:
    """17 % allow one block; its kernel blocks then allow more in the same group: 17 % of 3 * 32768 is too little for one."""
    machine = automatic(boot, rules, 17)
    add(machine, machine.groups.register_dynamic(1, PAGES), 32, 4)
    assert online(machine, 32, 33, 34, 35) == ["Movable", "Normal", "Normal", "Normal"]


@ALL
@pytest.mark.fact("6.11", "6.5")
def test_a_unit_with_a_kernel_block_becomes_kernel_memory(boot: Boot, rules: Rules) -> None:
    """Units are aligned pairs here: the other half of the pair follows the first, the next pair is free to choose."""
    machine = automatic(boot, rules, 301)
    add(machine, machine.groups.register_dynamic(1, 2 * PAGES), 32, 4)
    write(machine, "memory33/state", "online_kernel")
    assert defaults(machine, 32, 34, 35) == ["Normal", "Movable", "Movable"]


@ALL
@pytest.mark.fact("6.5")
@pytest.mark.parametrize(("ratio", "zone"), [(33, "Normal"), (34, "Movable")])
def test_a_unit_needs_room_for_all_that_is_not_movable_in_it_yet(boot: Boot, rules: Rules, ratio: int, zone: str) -> None:
    """Two blocks are 65536 pages: 33 % of 196478 is 64837, 34 % is 66802. The second half counts as there already."""
    machine = automatic(boot, rules, ratio)
    add(machine, machine.groups.register_dynamic(1, 2 * PAGES), 32, 2)
    assert defaults(machine, 32, 33) == [zone, zone]
    write(machine, "memory32/state", "online_movable")
    assert defaults(machine, 33) == [zone]


@ALL
@pytest.mark.fact("6.5")
def test_kernel_memory_of_a_dynamic_group_allows_movable_memory_in_that_group_only(boot: Boot, rules: Rules) -> None:
    """At 100 %: boot memory allows 5 blocks; 2 kernel blocks of a group allow 2 more there, and nobody else."""
    machine = automatic(boot, rules, 100)
    machine.add_memory(1, ROOM, 5 * BLOCK)
    for block in range(32, 37):
        write(machine, f"memory{block}/state", "online_movable")
    mine, other = (machine.groups.register_dynamic(1, PAGES) for _ in range(2))
    add(machine, mine, 40, 5)
    add(machine, other, 48, 1)
    for block in (40, 41):
        write(machine, f"memory{block}/state", "online_kernel")
    assert defaults(machine, 42, 48) == ["Movable", "Normal"]
    assert online(machine, 42, 43, 44) == ["Movable", "Movable", "Normal"]
    assert online(machine, 48) == ["Normal"]


@ALL
@pytest.mark.fact("6.5")
def test_numa_aware_a_dynamic_group_on_a_node_without_boot_memory_gets_no_movable(boot: Boot, rules: Rules) -> None:
    """Not even when a block of it is kernel memory there, which would pay for it on the machine as a whole."""
    machine = automatic(boot, rules, 100, auto_movable_numa_aware="Y")
    add(machine, machine.groups.register_dynamic(1, PAGES), 32, 4)
    assert online(machine, 32) == ["Normal"]
    # kernel_early is 0 on node 1 and so is what others claim of it, and that much must be left over (0 <= 0).
    assert defaults(machine, 33) == ["Normal"]
    machine.tree.write(f"{PARAMETERS}/auto_movable_numa_aware", "N")
    assert defaults(machine, 33) == ["Movable"]


@ALL
@pytest.mark.fact("6.5")
def test_numa_aware_counts_the_groups_of_the_node_alone(boot: Boot, rules: Rules) -> None:
    """At 50 %, 256 MiB on each node allow a block a node; what a group of node 0 claims, node 1 does not miss."""
    names = {"memory_hotplug.auto_movable_ratio": "50", "memory_hotplug.auto_movable_numa_aware": "Y"}
    machine = boot(["256MiB", "256MiB"], rules=rules, parameters={**POLICY, **names})
    near, far = machine.groups.register_dynamic(0, PAGES), machine.groups.register_dynamic(1, PAGES)
    add(machine, near, 32, 3)
    add(machine, far, 40, 3)
    # Node 0: 65438 early pages, since the first MiB has gaps; half of that is less than a block. Node 1: 65536, so just one.
    assert defaults(machine, 32, 40) == ["Normal", "Movable"]
    write(machine, "memory32/state", "online_movable")
    # The group of node 0 now claims 32768 * 100 / 50 early pages: of the machine's 130974 there are 65438 left, of node 0's none.
    assert defaults(machine, 33, 40) == ["Normal", "Normal"]
    machine.tree.write(f"{PARAMETERS}/auto_movable_ratio", "51")
    # Now it claims 64250: 66724 are left for the machine, 1188 for node 0 and, as before, 65536 for node 1.
    assert defaults(machine, 40) == ["Movable"]
    machine.add_memory(0, 2 * ROOM, BLOCK)
    assert defaults(machine, 64) == ["Normal"]


@ALL
def test_a_ratio_that_becomes_0_during_a_decision_does_not_count_for_it(boot: Boot, rules: Rules) -> None:
    """Its file is written without a lock; each decision goes by what it read first, the next one by 0."""

    class Written(Parameters):
        @property
        def auto_movable_ratio(self) -> int:
            return ratios.pop(0)

        @auto_movable_ratio.setter
        def auto_movable_ratio(self, value: int) -> None:
            pass

    machine = automatic(boot, rules, 301)
    for _ in range(2):
        machine.groups.register_dynamic(1, PAGES)
    machine.add_memory(1, ROOM, BLOCK)
    machine.parameters = Written.of(POLICY, rules)
    ratios = [301, 0, 0, 0]
    assert defaults(machine, 32) == ["Movable"]
    assert defaults(machine, 32) == ["Normal"]


@pytest.mark.fact("6.7")
def test_a_unit_that_falls_back_is_looked_up_where_the_walk_over_it_ended(boot: Boot) -> None:
    """So memory just below a node's DMA32 comes to DMA32 by default, where online_kernel brings it to Normal."""
    machine = boot([{"memory": "512MiB", "cpus": 1}, "512MiB"], rules=Rules.LINUX_6_1, parameters=POLICY)
    group = machine.groups.register_dynamic(1, 2 * PAGES)
    for block in (2, 3):
        write(machine, f"memory{block}/state", "offline")
    machine.remove_memory(2 * BLOCK, 2 * BLOCK)
    add(machine, group, 2, 2)
    assert valid_zones(machine, 2) == "Movable Normal"
    machine.tree.write(f"{PARAMETERS}/auto_movable_ratio", "1")
    assert valid_zones(machine, 2) == "DMA32 Normal Movable"
    assert online(machine, 2) == ["DMA32"]
    write(machine, "memory3/state", "online_kernel")
    # 2 is in DMA32 now, so the span of that zone begins there and covers 3.
    assert valid_zones(machine, 3) == "DMA32"


# -- against a naive oracle


@dataclass
class Oracle:
    """The rule of fact 6.5 as its sentences have it, over a plain list of (group, pages in kernel zones, pages in Movable)."""

    ratio: int
    early: int

    def allows(self, mine: int, groups: dict[int, list[int]], loose_movable: int, needed: int) -> bool:
        movable, early = loose_movable + groups[mine][1] if mine in groups else loose_movable, self.early
        for number, (kernel, moved) in groups.items():
            if number != mine:
                early -= max(0, moved * 100 // self.ratio - kernel)
        if early <= 0:
            return False
        if mine in groups:
            early += groups[mine][0]
        return movable + needed <= self.ratio * early // 100


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ratio=st.integers(1, 400),
    steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["online", "online_kernel", "online_movable"])), max_size=12),
)
@pytest.mark.fact("6.5", "6.12")
def test_dynamic_groups_follow_the_rule(boot: Boot, ratio: int, steps: list[tuple[int, str]]) -> None:
    """Blocks of three groups and of none come in any order and kind; each untyped one goes where the rule says."""
    machine = automatic(boot, Rules.LINUX_6_12, ratio)
    groups = {machine.groups.register_dynamic(1, PAGES): [0, 0] for _ in range(3)}
    oracle = Oracle(ratio, 196478)
    loose = 0
    for number, (owner, word) in enumerate(steps, 32):
        if owner in groups:
            add(machine, owner, number, 1)
        else:
            machine.add_memory(1, number * BLOCK, BLOCK)
        write(machine, f"memory{number}/state", word)
        movable = word == "online_movable" or (word == "online" and oracle.allows(owner, groups, loose, PAGES))
        assert valid_zones(machine, number) == ("Movable" if movable else "Normal")
        if owner in groups:
            groups[owner][movable] += PAGES
        elif movable:
            loose += PAGES
