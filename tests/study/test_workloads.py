"""Workloads: a share of a machine, the same pages for the same seed, and pages that can and can't move between each other."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from memhp import InvalidInput, Machine
from memhp.study import WORKLOADS, fill
from page_checker import check_pages
from support import Boot

NAMES = pytest.mark.parametrize("name", WORKLOADS)


def digest(machine: Machine) -> str:
    """Give a digest of what every page is."""
    tree = machine.tree
    words = tree.read_bytes("/proc/kpageflags") + tree.read_bytes("/proc/kpagecount")
    return hashlib.sha256(words + tree.read("/proc/buddyinfo").encode() + tree.read("/proc/pagetypeinfo").encode()).hexdigest()


@NAMES
def test_a_machine_is_filled_to_the_share(boot: Boot, name: str) -> None:
    """To within 1 %, on both nodes, and everything adds up page by page."""
    machine = boot(["1GiB", "512MiB"])
    total = machine.pages.count_free()
    filled = fill(machine, name, 0.5, seed=3)
    assert abs(filled.nr_pages / total - 0.5) < 0.01
    assert total - machine.pages.count_free() == filled.nr_pages
    assert {machine.block(block).nid for _, held in filled.held for one in held for block in one.blocks} == {0, 1}
    check_pages(machine)


@NAMES
def test_each_part_has_its_share(boot: Boot, name: str) -> None:
    """As the workload says, to within 2 % of what is used."""
    machine = boot("2GiB")
    filled = fill(machine, name, 0.6, seed=1)
    shares = [sum(one.nr_pages for one in held) / filled.nr_pages for _, held in filled.held]
    assert all(abs(share - part.share) < 0.02 for share, (part, _) in zip(shares, filled.held, strict=True))
    assert sum(part.share for part, _ in filled.held) == pytest.approx(1)


@NAMES
def test_the_same_seed_gives_the_same_pages(name: str) -> None:
    """Of every page, also after ageing; another seed gives others."""
    pictures = []
    for seed in (5, 5, 6):
        machine = Machine.boot(["512MiB", "512MiB"])
        fill(machine, name, 0.6, seed=seed, age=2)
        pictures.append(digest(machine))
    assert pictures[0] == pictures[1] != pictures[2]


def test_ageing_scatters_what_is_free(boot: Boot) -> None:
    """The share stays, the free pages are in many more pieces, and everything still adds up."""
    machines = [boot("1GiB"), boot("1GiB")]
    young, old = (fill(machine, "build", 0.7, seed=1, age=age) for machine, age in zip(machines, (0, 3), strict=True))
    assert abs(old.nr_pages - young.nr_pages) < 0.02 * young.nr_pages
    chunks = [sum(map(int, machine.tree.read("/proc/buddyinfo").splitlines()[1].split()[4:])) for machine in machines]
    assert chunks[1] > 20 * chunks[0]
    check_pages(machines[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workload": "mining"}, "one of database, build, cache, vmhost"),
        ({"share": 0}, "a share above 0 and below 1"),
        ({"share": 1.5}, "a share above 0 and below 1"),
        ({"share": "much"}, "a share above 0 and below 1"),
        ({"seed": -1}, "a number, at least 0"),
        ({"age": 1.5}, "a number, at least 0"),
    ],
)
def test_what_can_not_be_filled(boot: Boot, given: dict[str, Any], message: str) -> None:
    """The value is named, and the machine is untouched."""
    machine = boot("1GiB")
    free = machine.pages.count_free()
    with pytest.raises(InvalidInput, match=message):
        fill(machine, **{"workload": "build", "share": 0.5, "seed": 1, **given})
    assert machine.pages.count_free() == free
