"""Steps of drivers, device memory and participants: what each construct means, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memhp import ScenarioError
from memhp.scenario import load
from playing import MACHINE, Play

TWO = "machine: {nodes: [1GiB, 0], rules: '6.1', parameters: {memhp_default_state: offline}}\n"
GIB, MIB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("text", "arguments", "shown"),
    [
        (
            "bind: {driver: kmem, name: cxl, node: 1, ranges: [{at: 4GiB, size: 1GiB}, {at: 6GiB, size: 128MiB}]}",
            {
                "driver": "kmem",
                "name": "cxl",
                "node": 1,
                "ranges": ((4 * GIB, GIB), (6 * GIB, 128 * MIB)),
                "device": "dax0.0",
                "memmap_on_memory": False,
            },
            "bind kmem as cxl",
        ),
        (
            "bind: {driver: dlpar, lmbs: [{index: 0x80000000, at: 4GiB, node: 1, count: 2}], refuses: [0x80000001]}",
            {
                "driver": "dlpar",
                "name": "dlpar",
                "lmbs": ({"index": 0x80000000, "at": 4 * GIB, "node": 1, "count": 2, "reserved": False},),
                "refuses": frozenset({0x80000001}),
            },
            "bind dlpar",
        ),
        (
            "bind: {driver: standby, at: 4GiB, size: 256MiB, increment: 64MiB, edat1: false, refuses: 64-65}",
            {
                "driver": "standby",
                "name": "standby",
                "at": 4 * GIB,
                "size": 256 * MIB,
                "increment": 64 * MIB,
                "edat1": False,
                "refuses": frozenset({64, 65}),
            },
            "bind standby",
        ),
        ("bind: {driver: xen, name: balloon}", {"driver": "xen", "name": "balloon"}, "bind xen as balloon"),
        ("unbind: cxl", {"name": "cxl"}, "unbind cxl"),
        (
            "hypervisor: {driver: standby, refuses: 64}",
            {"driver": "standby", "refuses": frozenset({64})},
            "the hypervisor refuses 64",
        ),
        (
            "hypervisor: {driver: dlpar, refuses: []}",
            {"driver": "dlpar", "refuses": frozenset()},
            "the hypervisor refuses nothing",
        ),
        (
            "hot_add: {node: 1, size: 256MiB, backed: 128MiB}",
            {"driver": "hyperv", "node": 1, "at": None, "size": 256 * MIB, "backed": 128 * MIB},
            "hot-add 256 MiB to node 1, of which 128 MiB are backed",
        ),
        (
            "reserve_additional: {driver: balloon, at: 8GiB, size: 1GiB}",
            {"driver": "balloon", "node": 0, "at": 8 * GIB, "size": GIB},
            "reserve 1 GiB more on node 0",
        ),
        (
            "memremap: {name: gpu, node: 1, at: 8GiB, size: 2MiB, private: true}",
            {"name": "gpu", "node": 1, "at": 8 * GIB, "size": 2 * MIB, "private": True},
            "map 2 MiB of gpu into ZONE_DEVICE of node 1",
        ),
        ("memunmap: gpu", {"name": "gpu"}, "unmap gpu"),
        ("join: slab", {"names": ("slab",)}, "slab joins"),
        ("join: [slab, page_ext]", {"names": ("slab", "page_ext")}, "slab, page_ext join"),
        ("join: all", {"names": None}, "all of the kernel's own callbacks join"),
        ("leave: slab", {"name": "slab"}, "slab leaves"),
        (
            "tune: {participant: memory-tiers, slow: 1-2}",
            {"name": "memory-tiers", "key": "slow", "value": {1, 2}},
            "slow of memory-tiers becomes 1-2",
        ),
        (
            "tune: {participant: slab, out_of_memory: true}",
            {"name": "slab", "key": "out_of_memory", "value": True},
            "out_of_memory of slab becomes true",
        ),
        ("work: cpuset", {"name": "cpuset"}, "the worker of cpuset runs"),
        ("show: slab", {"name": "slab"}, "show slab"),
        ("fill: cache", {"workload": "cache", "share": 0.6, "seed": 1, "age": 0}, "fill 60% with cache"),
        (
            "fill: {workload: build, share: 0.25, seed: 3, age: 2}",
            {"workload": "build", "share": 0.25, "seed": 3, "age": 2},
            "fill 25% with build",
        ),
    ],
)
def test_a_step_is_read_with_what_it_needs(tmp_path: Path, text: str, arguments: dict[str, Any], shown: str) -> None:
    """A driver's name is that of its kind if nothing else is said."""
    path = tmp_path / "s.yaml"
    path.write_text(f"{MACHINE}steps:\n  - {text}\n")
    (step,) = load(path).steps
    assert (step.verb, step.arguments, step.shown) == (text.partition(":")[0], arguments, shown)


BAD = [
    ("bind: kmem", "a mapping"),
    ("bind: {name: x}", "a mapping with the key driver"),
    ("bind: {driver: nvdimm}", "one of kmem, dlpar, standby, hyperv, xen"),
    ("bind: {driver: kmem}", "a mapping with the key ranges"),
    ("bind: {driver: kmem, ranges: []}", "at least one range"),
    ("bind: {driver: kmem, ranges: [{at: 4GiB, size: 0}]}", "a size above 0"),
    ("bind: {driver: kmem, ranges: [{at: 4GiB}]}", "a mapping with the key size"),
    ("bind: {driver: xen, at: 4GiB}", "one of the keys driver, name"),
    ("bind: {driver: xen, name: first}", "another name; first and last are places"),
    ("bind: {driver: dlpar, lmbs: [{index: 0, at: 4GiB, count: 0}]}", "a number from 1 to"),
    ("bind: {driver: dlpar, lmbs: [{index: 0xffffffff, at: 4GiB, count: 2}]}", "an index below 2^32"),
    ("bind: {driver: dlpar, lmbs: [{index: 1, at: 4GiB, count: 2}, {index: 2, at: 8GiB}]}", "that no other LMB has"),
    ("bind: {driver: standby, at: 4GiB, size: 256MiB, increment: 96MiB}", "a power of two"),
    ("bind: {driver: standby, at: 4GiB, size: 256MiB, increment: 0}", "a size above 0"),
    ("bind: {driver: standby, at: 4GiB, size: 192MiB, increment: 128MiB}", "a multiple of the increment, 128 MiB"),
    ("bind: {driver: standby, at: 4GiB, size: 8TiB, increment: 1MiB}", "at most 1048576 increments"),
    ("bind: {driver: standby, at: 4GiB, size: 256MiB, increment: 64MiB, refuses: [-1]}", "a number from 0"),
    ("hypervisor: {driver: dlpar}", "a mapping with the key refuses"),
    ("hot_add: {size: 128MiB, backed: 256MiB}", "at most the size, 128 MiB"),
    ("memremap: {name: gpu, at: 8GiB, size: 0}", "a size above 0"),
    ("join: slub", "one of ksm, memory-tiers"),
    ("join: []", "all, or some participants, each once"),
    ("join: [slab, slab]", "all, or some participants, each once"),
    ("tune: {participant: kcore}", "one of slab, page_ext, memory-tiers"),
    ("tune: {participant: slab, slow: 1}", "participant and out_of_memory, which is what slab has"),
    ("tune: {participant: slab}", "participant and out_of_memory"),
    ("work: slab", "one of cpuset"),
    ("fill: mining", "one of database, build, cache, vmhost"),
    ("fill: {share: 60%}", "a mapping with the key workload"),
    ("fill: {workload: build, share: 100%}", "above 0 and below 1"),
    ("add_driver_managed: {size: 128MiB}", "a mapping with the key name"),
    ("offline_and_remove: [32]", "a single value"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[text for text, _ in BAD])
def test_a_wrong_step_is_told_where_and_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    """With the file and the line, before anything is played."""
    path = tmp_path / "s.yaml"
    path.write_text(f"{MACHINE}steps:\n  - {text}\n")
    with pytest.raises(ScenarioError) as caught:
        load(path)
    assert (caught.value.file, caught.value.line) == (str(path), 3)
    assert expected in caught.value.expected


@pytest.mark.parametrize(
    ("steps", "line", "expected"),
    [
        (["bind: {driver: xen}", "bind: {driver: hyperv, name: xen}"], 4, "a name that nothing has that is attached"),
        (["bind: {driver: xen}", "hot_add: {driver: xen, size: 128MiB}"], 4, "the name of a hyperv that a step has bound"),
        (["reserve_additional: {size: 128MiB}"], 3, "the name of a xen that a step has bound"),
        (["bind: {driver: xen}", "unbind: xen"], 4, "the name of a dax/kmem device that a step has bound"),
        (
            ["bind: {driver: standby, at: 4GiB, size: 256MiB, increment: 64MiB, refuses: [65, 9999]}"],
            3,
            "refuses: only what standby has, 64-67",
        ),
        (
            ["bind: {driver: dlpar, lmbs: [{index: 5, at: 4GiB}]}", "hypervisor: {driver: dlpar, refuses: [6]}"],
            4,
            "refuses: only what dlpar has, 5",
        ),
        (["hypervisor: {driver: dlpar, refuses: 1}"], 3, "the name of a dlpar or standby that a step has bound"),
        (
            ["bind: {driver: dlpar, lmbs: []}", "bind: {driver: dlpar, name: other, lmbs: []}"],
            4,
            "only one dlpar, because there is one file /sys/kernel/dlpar",
        ),
        (["bind: {driver: standby, at: 4GiB, size: 64MiB, increment: 64MiB}"], 3, "whole memory blocks of 128 MiB"),
        (["memunmap: gpu"], 3, "the name of device memory that a step has mapped"),
        (["join: slab", "join: all"], 4, "a name that nothing has that is attached"),
        (["leave: slab"], 3, "the name of a participant that has joined"),
        (["tune: {participant: slab, out_of_memory: true}"], 3, "the name of a participant that has joined"),
        (["work: cpuset"], 3, "the name of a participant that has joined"),
        (["show: slab"], 3, "the name of something that is attached"),
    ],
)
def test_a_step_that_asks_for_what_is_not_there_ends_the_run(play: Play, steps: list[str], line: int, expected: str) -> None:
    """With the line of that step."""
    with pytest.raises(ScenarioError) as caught:
        play("steps:\n" + "".join(f"  - {step}\n" for step in steps), machine=TWO)
    assert (caught.value.line, caught.value.expected) == (line, expected)


@pytest.mark.fact("9.3", "9.5")
def test_what_participants_know_is_shown(play: Play) -> None:
    """Before 6.12 cpuset's worker does the update, when it runs; arm64 has no state."""
    run = play(
        """
steps:
  - join: all
  - join: [page_ext, arm64, cmm]
  - add: {size: 256MiB, node: 1}
  - online: {blocks: 32-33, type: online_movable}
  - show: cpuset
  - work: cpuset
  - show: cpuset
  - offline: 33
  - {show: page_ext, expect: {text: tables 32}}
  - {show: ksm, expect: {text: paused no; pruned 1}}
  - {show: kcore, expect: {text: needs update yes}}
  - {show: cmm, expect: {text: resting no}}
  - {show: arm64, expect: {text: ""}}
  - {offline: 3, expect: EPERM}
""",
        machine=TWO,
    )
    assert run.failed == []
    assert [text for text in run.texts if text.startswith("mems")] == [
        "mems 0; updates 0; queued yes",
        "mems 0-1; updates 1; queued no",
    ]


@pytest.mark.fact("10.9", "10.11")
def test_a_reserved_lmb_is_not_touched(play: Play) -> None:
    """Nor is one that the hypervisor keeps, until it gives it."""
    run = play(
        """
steps:
  - bind: {driver: dlpar, refuses: [1], lmbs: [{index: 1, at: 4GiB}, {index: 2, at: 0x108000000, reserved: true}]}
  - {write: {file: /sys/kernel/dlpar, text: memory add indexed-count 2 1}, expect: EINVAL}
  - {write: {file: /sys/kernel/dlpar, text: memory add index 1}, expect: EIO}
  - {write: {file: /sys/kernel/dlpar, text: memory remove index 2}, expect: EINVAL}
  - hypervisor: {driver: dlpar, refuses: []}
  - write: {file: /sys/kernel/dlpar, text: memory add index 1}
  - {show: dlpar, expect: {text: assigned 0x1; hints none; updates 1}}
""",
        machine=TWO,
    )
    assert run.failed == []


@pytest.mark.fact("10.5")
def test_a_device_that_let_go_can_be_bound_again(play: Play) -> None:
    """Under the same name, which stands for its blocks."""
    bind = "  - bind: {driver: kmem, name: cxl, node: 1, ranges: [{at: 4GiB, size: 256MiB}]}\n"
    run = play(f"steps:\n{bind}  - unbind: cxl\n{bind}  - online: {{blocks: last, among: cxl}}\n", machine=TWO)
    assert run.failed == []
    assert run.states() == {32: "offline", 33: "online"}


def test_the_seed_of_a_workload_decides_which_pages_it_takes(play: Play) -> None:
    """The same seed gives the same machine, another one another."""

    def used(seed: int) -> list[int]:
        run = play(f"steps:\n  - fill: {{workload: vmhost, share: 50%, seed: {seed}, age: 1}}\n")
        return [block["used_pages"] for block in run.of("machine")[1]["blocks"]]

    assert used(1) == used(1) != used(2)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["plug: {name: d, size: 3MiB}"], "a DIMM of 0x300000 bytes: size and address must be multiples of 0x200000"),
        (
            ["bind: {driver: kmem, ranges: [{at: 4GiB, size: 2MiB}]}"],
            "dax0.0: no range has a whole memory block of 0x8000000 bytes",
        ),
        (["bind: {driver: kmem, node: -1, ranges: [{at: 4GiB, size: 1GiB}]}"], "dax0.0: -1 is no node"),
        (["bind: {driver: hyperv}", "bind: {driver: xen}"], "another driver gives pages to the allocator already: HyperVBalloon"),
    ],
)
def test_a_refusal_names_what_is_in_the_way(play: Play, steps: list[str], said: str) -> None:
    """It says which of several things is wrong, and nothing that the file does not say."""
    run = play("steps:\n" + "".join(f"- {step}\n" for step in steps))
    last = run.of("result")[-1]
    assert last["result"] == "EINVAL"
    assert last["message"].startswith(said)
