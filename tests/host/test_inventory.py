"""Host.blocks(): what a machine has, through any tree."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memhp import DirTree, HotplugError, InvalidInput, Machine
from memhp.abi.directory import DirectoryOfFiles
from memhp.errors import HostError, NoMemoryBlocks
from memhp.host import Block, Host, Policy
from memhp.units import BlockId
from trees import MEMORY, NODE, PARAMETERS, TreeSpec, block, write

SPEC = TreeSpec(
    blocks={
        0: block(zones="none", nodes=(0, 1)),
        1: block(zones="DMA32"),
        8: block("offline", "Normal Movable", removable="0", nodes=(1,)),
        9: block("going-offline", "Movable Normal", nodes=(1,)),
        11: {"nodes": [1]},
    },
    files={
        f"{MEMORY}/auto_online_blocks": "online_movable",
        f"{PARAMETERS}/online_policy": "auto-movable",
        f"{PARAMETERS}/auto_movable_ratio": "301",
        f"{PARAMETERS}/auto_movable_numa_aware": "Y",
        f"{PARAMETERS}/memmap_on_memory": "N",
    },
)


def seen(found: tuple[Block, ...]) -> list[tuple[object, ...]]:
    return [(one.id, one.start >> 27, one.nodes, one.state, one.valid_zones, one.zone, one.removable) for one in found]


EXPECTED = [
    (0, 0, (0, 1), "online", ("none",), None, True),
    (1, 1, (0,), "online", ("DMA32",), "DMA32", True),
    (8, 8, (1,), "offline", ("Normal", "Movable"), None, False),
    (9, 9, (1,), "going-offline", ("Movable", "Normal"), None, True),
    (11, 11, (1,), "", None, None, None),
]


@pytest.mark.parametrize("node_links", [True, False])
@pytest.mark.parametrize("zones", [True, False])
def test_blocks_are_what_their_files_say(tmp_path: Path, *, node_links: bool, zones: bool) -> None:
    """Nodes come from the nodes' directories, or from the blocks' where a copy lacks those; what isn't there is None or ''."""
    spec = TreeSpec(blocks=SPEC.blocks, node_links=node_links)
    assert seen(Host(DirTree(spec.write(tmp_path / "root"))).blocks(zones=zones)) == EXPECTED


def test_an_inventory_has_everything(tmp_path: Path) -> None:
    """Nodes without memory too, and what happens with new memory."""
    root = SPEC.write(tmp_path / "root")
    (root / NODE / "node7").mkdir()
    inventory = Host(DirTree(root)).inventory()
    assert seen(inventory.blocks) == EXPECTED
    assert (inventory.block_size, inventory.nodes, inventory.online_bytes) == (128 << 20, (0, 1, 7), 256 << 20)
    assert inventory.policy == Policy("online_movable", "auto-movable", 301, auto_movable_numa_aware=True, memmap_on_memory="N")
    assert inventory.block(8).end == 9 << 27
    with pytest.raises(InvalidInput, match="'memory7' is not valid; expected a block that exists"):
        inventory.block(7)


def test_what_is_not_said_is_none(tmp_path: Path) -> None:
    """A kernel without NUMA, without parameters, before 3.18."""
    root = TreeSpec(blocks={0: {"state": "online"}}).write(tmp_path / "root")
    inventory = Host(DirTree(root)).inventory()
    assert seen(inventory.blocks) == [(0, 0, (), "online", None, None, None)]
    assert (inventory.nodes, inventory.policy, inventory.blocks[0].phys_device) == ((), Policy(), None)


def test_the_model_is_a_machine_too(boot: Callable[..., Machine]) -> None:
    """The same call, on the files that the model serves; a block changes under a change, the list doesn't."""
    machine = boot(["1GiB", 0])
    host = Host(machine.tree)
    before = host.blocks(zones=True)
    machine.device_offline(7)
    after = host.blocks(zones=True)
    assert [(one.id, one.state, one.zone) for one in before if one not in after] == [(7, "online", "DMA32")]
    assert [(one.id, one.state, one.valid_zones) for one in after if one not in before] == [(7, "offline", ("Normal", "Movable"))]
    assert {one.nodes for one in after} == {(0,)}
    assert host.policy().auto_online_blocks == "offline"


@pytest.mark.parametrize(
    ("state", "zones", "verdict"),
    [
        ("offline", "Normal Movable", ("offline", "it is offline")),
        ("online", "none", ("no", "it lies in several zones or nodes")),
        ("online", "None", ("no", "it lies in several zones or nodes")),
        ("online", "Movable", ("unknown", "its pages decide")),
        ("going-offline", "Movable Normal", ("unknown", "it is on its way")),
        ("weird", "Normal", ("unknown", "its state says 'weird'")),
        ("", "", ("unknown", "its state can't be read")),
    ],
)
def test_cheap_facts_never_say_yes(state: str, zones: str, verdict: tuple[str, str]) -> None:
    """Whether a block goes offline is decided by its pages, which aren't in these files."""
    assert Block(BlockId(0), 1 << 27, (0,), state, tuple(zones.split())).verdict == verdict


class Vanishing(DirTree):
    """A tree from which a block goes away between the listing and the reading."""

    def directory(self, path: str) -> DirectoryOfFiles:
        return Forgetful(str(self.root) + path)


class Forgetful(DirectoryOfFiles):
    """Loses a block once it has been listed."""

    def names(self, name: str = ".") -> list[str]:
        names = super().names(name)
        if "memory1" in names:
            shutil.rmtree("memory1", dir_fd=self.descriptor)
        return names


@pytest.mark.parametrize("zones", [True, False])
def test_a_block_that_goes_away_while_it_is_read_is_left_out(tmp_path: Path, *, zones: bool) -> None:
    """It isn't there any more, so nothing is said of it."""
    root = SPEC.write(tmp_path / "root")
    assert [one.id for one in Host(Vanishing(root)).blocks(zones=zones)] == [0, 8, 9, 11]


def test_a_machine_without_memory_blocks_says_what_the_kernel_needs(tmp_path: Path) -> None:
    """Whether the directory is missing or empty."""
    with pytest.raises(NoMemoryBlocks, match="not there; the kernel needs CONFIG_MEMORY_HOTPLUG"):
        Host(DirTree(tmp_path)).blocks()
    with pytest.raises(NoMemoryBlocks, match="no memory blocks; the kernel needs CONFIG_MEMORY_HOTPLUG"):
        Host(DirTree(TreeSpec().write(tmp_path / "root"))).blocks()


@pytest.mark.parametrize("text", ["", "x", "0", "3000000", "-8000000"])
def test_a_block_size_that_makes_no_sense_is_named(text: str, tmp_path: Path) -> None:
    """A power of two, in hexadecimal."""
    root = TreeSpec(blocks={0: block()}).write(tmp_path / "root")
    write(root / MEMORY / "block_size_bytes", text)
    with pytest.raises(InvalidInput, match="/sys/devices/system/memory/block_size_bytes: "):
        Host(DirTree(root)).blocks()


class Closed(DirTree):
    """A tree that may not be read."""

    def directory(self, path: str) -> DirectoryOfFiles:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def test_what_may_not_be_read_is_an_error_with_its_errno(tmp_path: Path) -> None:
    """Also where a container hides it."""
    root = TreeSpec(blocks={0: block()}).write(tmp_path / "root")
    with pytest.raises(HostError, match="/sys/devices/system/memory: can't be read: Permission denied") as caught:
        Host(Closed(root)).blocks()
    assert caught.value.errno == errno.EACCES


def test_a_host_is_never_written_to() -> None:
    """The tree of this machine that Host() makes is read-only."""
    tree = Host().tree
    assert isinstance(tree, DirTree)
    assert tree.writable is False


def test_this_machine_is_listed_as_its_files_say() -> None:
    """Block by block, read the plain way."""
    memory = Path("/sys/devices/system/memory")
    if not memory.exists():
        pytest.skip("no memory blocks here")
    names = sorted((one for one in memory.iterdir() if one.name[6:].isdigit()), key=lambda one: int(one.name[6:]))
    plain = [(int(one.name[6:]), (one / "state").read_text().strip(), (one / "valid_zones").read_text().split()) for one in names]
    assert [(one.id, one.state, list(one.valid_zones or ())) for one in Host().blocks()] == plain


def test_an_error_of_the_model_is_an_os_error(boot: Callable[..., Machine]) -> None:
    """So that what is read through a tree fails alike everywhere."""
    with pytest.raises(HotplugError) as caught:
        boot("1GiB").tree.read("/sys/devices/system/memory/memory99/state")
    assert isinstance(caught.value, OSError)
