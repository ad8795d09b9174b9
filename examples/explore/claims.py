"""What the document claims of memory hotplug's locks and callbacks, as scenes: ``memhp explore examples/explore/claims.py``.

Each function is given a scene, makes a machine, and starts threads. The explorer plays every interleaving of them.
"""

from __future__ import annotations

import contextlib

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_GOING_ONLINE,
    MEM_ONLINE,
    NOTIFY_BAD,
    NOTIFY_OK,
    HotplugError,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifyResult,
)
from memhp.explore import Scene

GIB, BLOCK = 1 << 30, 128 << 20
STATE = "/sys/devices/system/memory/memory{}/state"


def boot(scene: Scene, **options: object) -> Machine:
    """Boot a small machine on which added memory stays offline."""
    return scene.boot([{"memory": "512MiB", "cpus": 2}], parameters={"memhp_default_state": "offline"}, **options)


def write(machine: Machine, block: int, word: str) -> None:
    """Write to a block's state; that it fails in some orders (the block is gone, or was so already) is as it should be."""
    with contextlib.suppress(HotplugError):
        machine.tree.write(STATE.format(block), word)


# -- (a) add_memory() takes two locks in one order, device_online() in the other; device_hotplug_lock keeps them apart


def add_against_online(scene: Scene, *, device_hotplug_lock: bool = True) -> None:
    """A block is added while somebody who waits for it brings it online."""
    machine = boot(scene, device_hotplug_lock=device_hotplug_lock)

    def online() -> None:
        with contextlib.suppress(HotplugError):
            machine.device_online(32)

    scene.thread("adder", machine.add_memory, 0, 4 * GIB, BLOCK)
    scene.thread("onliner", online)
    scene.thread("reader", total, machine)


def total(machine: Machine) -> int:
    """Count memory as a reader does."""
    with machine.online_mems():
        return machine.memory_total


# -- (b) everybody at once: no deadlock


def everybody(scene: Scene) -> None:
    """Memory is added, brought online through sysfs, removed, and a CPU goes, all at the same time."""
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, BLOCK)

    def remove() -> None:
        with contextlib.suppress(HotplugError):
            machine.remove_memory(4 * GIB, BLOCK)

    scene.thread("storer", write, machine, 32, "online")
    scene.thread("remover", remove)
    scene.thread("adder", machine.add_memory, 0, 5 * GIB, BLOCK)
    scene.thread("cpu", cpu_down, machine)


def eject_against_stores(scene: Scene) -> None:
    """A DIMM is ejected while its block is brought online and offline through sysfs."""
    machine = boot(scene)
    dimm = machine.plug_dimm(0, BLOCK)
    (block,) = dimm.blocks

    def eject() -> None:
        with contextlib.suppress(HotplugError):
            machine.unplug_dimm(dimm)

    scene.thread("ejector", eject)
    scene.thread("onliner", write, machine, block, "online")
    scene.thread("offliner", write, machine, block, "offline")
    scene.thread("cpu", cpu_down, machine)


def cpu_down(machine: Machine) -> None:
    """Take a CPU offline through sysfs, which needs device_hotplug_lock too."""
    machine.tree.write("/sys/devices/system/cpu/cpu1/online", "0")


# -- (c) memory does not vanish under a reader


def readers_see_what_stays(scene: Scene) -> None:
    """Two readers look twice at the same memory while a block comes online and another goes offline."""
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, 2 * BLOCK)
    machine.device_online(32)

    def read() -> None:
        with machine.online_mems():
            before = machine.memory_total, [block.id for block in machine.blocks.values() if block.present]
            after = machine.memory_total, [block.id for block in machine.blocks.values() if block.present]
            assert after == before, f"memory changed under a reader: {before} became {after}"

    scene.thread("offliner", write, machine, 32, "offline")
    scene.thread("onliner", write, machine, 33, "online")
    scene.thread("reader", read)
    scene.thread("reader2", read)


# -- (d) what callbacks hear

Heard = list[tuple[str, MemoryAction, int]]
ONLINED = (MEM_GOING_ONLINE, MEM_ONLINE)
REFUSED = (MEM_GOING_ONLINE, MEM_CANCEL_ONLINE)


def callbacks_hear_whole_stories(scene: Scene) -> None:
    """While a block comes online, which the lowest callback may refuse, another callback is registered.

    Those who were there hear one of the two whole stories. The newcomer hears the rest of one, from whatever call on
    (fact 1.13); and if somebody refuses, everybody on the chain hears the cancel.
    """
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, BLOCK)
    heard: Heard = []

    def listener(name: str, priority: int, *, may_refuse: bool = False) -> NotifierBlock:
        def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
            heard.append((name, action, priority))
            refuses = may_refuse and action is MEM_GOING_ONLINE and scene.choose(2) == 1
            return NOTIFY_BAD if refuses else NOTIFY_OK

        return NotifierBlock(callback, priority, name)

    machine.memory_chain.register(listener("high", 10))
    machine.memory_chain.register(listener("low", -10, may_refuse=True))
    newcomer = listener("newcomer", 0)
    scene.thread("onliner", write, machine, 32, "online")
    scene.thread("registrar", machine.memory_chain.register, newcomer)

    @scene.at_end
    def stories() -> None:
        done = ONLINED if machine.blocks[32].present else REFUSED
        for name in ("high", "low"):
            story = tuple(action for who, action, _ in heard if who == name)
            assert story == done, f"{name} heard {[action.name for action in story]}"
        tail = tuple(action for who, action, _ in heard if who == "newcomer")
        assert tail in {done, done[1:], ()}, f"newcomer heard {[action.name for action in tail]}"
        for action in done:
            order = [priority for _, what, priority in heard if what is action]
            assert order == sorted(order, reverse=True), f"{action.name} was heard in the order {order}"


# -- (e) unregister() returns when the callback is out


def unregister_waits(scene: Scene) -> None:
    """A module that unregisters its callback may forget its data at once: nobody is in the callback, and nobody will be."""
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, BLOCK)
    data = scene.cell("data", "valid")

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        for _ in range(2):
            if data.get() != "valid":
                raise RuntimeError(f"the callback uses data that is {data.peek()}")
        return NOTIFY_OK

    registered = machine.hotplug_memory_notifier(callback)

    def unload() -> None:
        registered.unregister()
        data.set("freed")

    def online() -> None:
        machine.tree.write(STATE.format(32), "online")
        assert registered.errors == 0, "the callback was called after it was unregistered"

    scene.thread("onliner", online)
    scene.thread("unloader", unload)


# -- (f) whatever goes wrong, no half state is left


def no_half_states(scene: Scene) -> None:
    """Each call of a callback may agree, refuse or raise, a signal may come at any time, and a page may have nowhere to go."""
    machine = boot(scene)
    machine.add_memory(0, 4 * GIB, 2 * BLOCK)
    machine.device_online(32, "online_movable")
    machine.alloc_pages(8, blocks=[32], owner="user")

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        if action in {MEM_CANCEL_OFFLINE, MEM_CANCEL_ONLINE}:
            return NOTIFY_OK
        how = scene.choose(3)
        if how == 2:
            raise RuntimeError("a bug in a callback")
        return NOTIFY_BAD if how == 1 else NOTIFY_OK

    machine.hotplug_memory_notifier(callback)

    def change() -> None:
        for block, word in ((32, "offline"), (33, "online")):
            before = picture(machine, block)
            try:
                machine.tree.write(STATE.format(block), word)
            except HotplugError as error:
                after = picture(machine, block)
                assert after == before, f"{error} left {difference(before, after)}"

    scene.thread("changer", change)
    scene.thread("reader", total, machine)
    scene.thread("killer", lambda: machine.send_signal(scene.task("changer")))


Picture = dict[str, object]


def picture(machine: Machine, number: int) -> Picture:
    """Everything that a failed change must leave as it was: of the block, its zones, the masks and the memory in all."""
    block = machine.blocks[number]
    found: Picture = {
        "state": block.state,
        "offline": block.offline,
        "zone": block.zone,
        "isolated": block.isolated,
        "pages in use": sum(extent.nr_pages for other in machine.blocks.values() for extent in other.used),
        "masks": {mask.value: sorted(nids) for mask, nids in machine.node_states.items()},
        "total": machine.memory_total,
    }
    for zone in machine.nodes[block.nid].zones:
        found[zone.type.label] = (zone.start_pfn, zone.spanned, zone.present, zone.managed, sorted(zone.blocks))
    return found


def difference(before: Picture, after: Picture) -> str:
    """Say what is not as it was."""
    return ", ".join(f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key])
