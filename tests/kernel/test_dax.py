"""The dax bus: soft-reserved memory as devices, what drivers make of them, and the tiers that their memory is in.

What is expected was seen in guests of 6.1.192 and 6.12.117 with ``memmap=512M%4G-1+0xefffffff`` and the like.
"""

from __future__ import annotations

import pytest

from memhp import MEM_GOING_ONLINE, NOTIFY_BAD, InvalidInput, Machine, Rules
from memhp.kernel.boot import NodeSpec
from memhp.kernel.layout import soft_ranges
from support import ALL, BLOCK, GIB, MEMORY, MIB, Boot, Log, in_thread, refusal, snapshot, state, until_parked, valid_zones, write

KERNELS = pytest.mark.parametrize("rules", [Rules.LINUX_6_1, Rules.LINUX_6_12], ids=["6.1", "6.12"])
BUS = "/sys/bus/dax"
REGION = "/sys/devices/platform/hmem.0/dax_region"
HIGH = 4 * GIB
NEW = Rules.LINUX_6_12


def reserve(boot: Boot, rules: Rules, *ranges: tuple[int, int], **options: object) -> Machine:
    """Boot 3 GiB on node 0 and 1 GiB on node 1, of which these ranges are soft-reserved."""
    given = {"parameters": {"memhp_default_state": "offline"}, **options}
    return boot(["3GiB", "1GiB"], rules=rules, soft_reserved=ranges or [(HIGH, 512 * MIB)], **given)


def free(boot: Boot, rules: Rules, *ranges: tuple[int, int], **options: object) -> Machine:
    """Boot such a machine and take each device from the driver that has it, which is another one on each kernel."""
    machine = reserve(boot, rules, *ranges, **options)
    for device in list(machine.dax):
        bus(machine, f"drivers/{device.driver}/unbind", device.name)
    return machine


def bus(machine: Machine, path: str, text: str) -> None:
    machine.tree.write(f"{BUS}/{path}", text)


def said(machine: Machine, path: str) -> str:
    return machine.tree.read(f"{BUS}/devices/{path}").strip()


def claims(machine: Machine) -> list[str]:
    return [
        line for line in str(machine.iomem).splitlines() if "dax" in line or "kmem" in line or "Soft" in line or "hmem" in line
    ]


def ranges(machine: Machine, name: str) -> list[str]:
    found = machine.dax.find(name)
    assert found is not None
    return [f"{one}@{one.page_offset:#x}" for one in found.ranges]


def heard(machine: Machine) -> list[str]:
    uevents: list[str] = []
    machine.uevents.subscribe(lambda event: uevents.append(str(event)))
    return uevents


# -- after boot


@pytest.mark.fact("10.5a", "10.5c")
def test_device_dax_has_the_memory_after_boot_on_6_1_and_kmem_on_6_12(boot: Boot) -> None:
    """6.1 says twice whose the addresses are; 6.12 has added the memory."""
    old, new = (reserve(boot, rules) for rules in (Rules.LINUX_6_1, NEW))
    assert claims(old) == [
        "100000000-11fffffff : hmem.0",
        "  100000000-11fffffff : Soft Reserved",
        "    100000000-11fffffff : dax0.0",
    ]
    assert claims(new) == [
        "100000000-11fffffff : Soft Reserved",
        "  100000000-11fffffff : dax0.0",
        "    100000000-11fffffff : System RAM (kmem)",
    ]
    assert [machine.tree.exists(f"{MEMORY}/memory32") for machine in (old, new)] == [False, True]
    assert [machine.nodes[1].device_zone.spanned for machine in (old, new)] == [131072, 0]
    assert [valid_zones(new, number) for number in (32, 35, 36)] == ["Normal Movable", "Normal Movable", "Normal"]


@KERNELS
@pytest.mark.fact("10.5a", "3.14")
def test_a_block_in_which_ram_ends_is_there_with_a_part_of_it(boot: Boot, rules: Rules) -> None:
    """It has holes, so it can't go offline; the whole blocks of the device are kmem's."""
    machine = free(boot, rules, (HIGH + 64 * MIB, 448 * MIB))
    assert (state(machine, 32), machine.block(32).ram_pages) == ("online", 64 * MIB // 4096)
    assert refusal(write, machine, "memory32/state", "offline") == "EINVAL"
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    assert [claim.strip() for claim in claims(machine)[-2:]] == [
        "108000000-11fffffff : dax0.0",
        "108000000-11fffffff : System RAM (kmem)",
    ]
    assert sorted(machine.nodes[1].linked) == [32, 33, 34, 35, 36, 37, 38, 39]


@KERNELS
@pytest.mark.fact("10.5a", "8.3")
def test_a_node_that_is_all_soft_reserved_comes_and_goes_with_its_device(boot: Boot, rules: Rules) -> None:
    """Its device is nearest to node 0 as long as it is a device, and of node 1 once it is memory."""
    machine = boot(
        ["4GiB", "512MiB"], rules=rules, parameters={"memhp_default_state": "offline"}, soft_reserved=[(5 * GIB, 512 * MIB)]
    )
    [device] = machine.dax
    bus(machine, f"drivers/{device.driver}/unbind", "dax0.0")
    online = "/sys/devices/system/node/online"
    assert (machine.tree.read(online), said(machine, "dax0.0/target_node"), said(machine, "dax0.0/numa_node")) == (
        "0\n",
        "1",
        "0",
    )
    bus(machine, "drivers/device_dax/new_id", "dax0.0")
    assert (machine.nodes[0].device_zone.spanned, machine.nodes[1].device_zone.spanned) == (131072, 0)
    bus(machine, "drivers/device_dax/unbind", "dax0.0")
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    assert machine.tree.read(online) == "0-1\n"
    assert (machine.nodes[0].device_zone.spanned, said(machine, "dax0.0/numa_node")) == (131072, "0")
    bus(machine, "drivers/kmem/unbind", "dax0.0")
    assert machine.tree.read(online) == "0\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(HIGH, MIB)], "soft_reserved[0]: size: 1048576 is not valid; expected a multiple of 2 MiB"),
        ([(HIGH, 0)], "soft_reserved[0]: size: 0 is not valid"),
        ([(HIGH + 4096, 2 * MIB)], "soft_reserved[0]: at: 4294971392 is not valid"),
        ([("0", "2MiB")], "soft_reserved[0]: at: '0' is not valid; expected a multiple of 2 MiB, at least that much"),
        ([(3 * GIB - 2 * MIB, 4 * MIB)], "expected a range within the memory of one node"),
        ([(HIGH + GIB, 2 * MIB)], "expected a range within the memory of one node"),
        ([(HIGH, 4 * MIB), (HIGH + 2 * MIB, 4 * MIB)], "soft_reserved: '0x100200000' is not valid; expected ranges apart"),
        ([(HIGH, 2 * MIB), (HIGH + 2 * MIB, 2 * MIB)], "expected ranges apart; one ends at 0x100200000"),
        ([{"at": HIGH}], "soft_reserved[0]: {'at': 4294967296} is not valid; expected a range with at and size"),
        ([{"at": HIGH, "size": "much"}], "soft_reserved[0]: size: 'much' is not valid"),
        ("4GiB", "soft_reserved: '4GiB' is not valid; expected a list of ranges"),
    ],
)
def test_ranges_that_can_not_be_soft_reserved(given: object, message: str) -> None:
    """Each is said with its place."""
    with pytest.raises(InvalidInput) as error:
        soft_ranges([NodeSpec(3 * GIB), NodeSpec(GIB)], given)
    assert message in str(error.value)


# -- drivers


@KERNELS
@pytest.mark.fact("10.5c", "10.5h")
def test_a_device_goes_from_driver_to_driver_and_uevents_say_so(boot: Boot, rules: Rules) -> None:
    """Each after what the driver does: blocks come before `bind`, and go before `unbind`."""
    machine = free(boot, rules, (HIGH, BLOCK))
    uevents = heard(machine)
    bus(machine, "drivers/kmem/new_id", "dax0.0\n")
    bus(machine, "drivers/kmem/unbind", "dax0.0\n")
    bus(machine, "drivers/device_dax/new_id", "dax0.0")
    assert uevents == [
        "add@/devices/system/memory/memory32",
        "bind@/devices/platform/hmem.0/dax0.0",
        "remove@/devices/system/memory/memory32",
        "unbind@/devices/platform/hmem.0/dax0.0",
        "bind@/devices/platform/hmem.0/dax0.0",
    ]
    unbound, bound = list(machine.uevents)[-2:]
    assert unbound.extra == (("MAJOR", "253"), ("MINOR", "0"), ("DEVNAME", "dax0.0"))
    assert bound.extra == (
        ("MAJOR", "253"),
        ("MINOR", "0"),
        ("DEVNAME", "dax0.0"),
        ("DRIVER", "device_dax"),
        ("MODALIAS", "dax:t0"),
    )
    assert said(machine, "dax0.0/uevent") == "MAJOR=253\nMINOR=0\nDEVNAME=dax0.0\nDRIVER=device_dax\nMODALIAS=dax:t0"


@KERNELS
@pytest.mark.fact("10.5c")
def test_what_bind_and_unbind_refuse(boot: Boot, rules: Rules) -> None:
    """ENODEV for the wrong driver or device, EBUSY for one that is bound, ENXIO for one without memory."""
    machine = free(boot, rules)
    other = {Rules.LINUX_6_1: "kmem", NEW: "device_dax"}[rules]
    mine = {Rules.LINUX_6_1: "device_dax", NEW: "kmem"}[rules]
    machine.tree.write(f"{BUS}/devices/dax0.0/size", "0")
    machine.tree.write(f"{REGION}/create", "1")
    machine.tree.write(f"{BUS}/devices/dax0.1/size", str(BLOCK))
    before = snapshot(machine)
    assert refusal(bus, machine, f"drivers/{other}/bind", "dax0.1") == "ENODEV"
    assert refusal(bus, machine, f"drivers/{mine}/bind", "dax0.0") == "ENXIO"
    assert refusal(bus, machine, f"drivers/{mine}/bind", "dax0.7") == "ENODEV"
    assert refusal(bus, machine, f"drivers/{mine}/bind", "dax0.1 ") == "ENODEV"
    assert refusal(bus, machine, f"drivers/{mine}/unbind", "dax0.1") == "ENODEV"
    assert snapshot(machine) == before
    bus(machine, f"drivers/{mine}/bind", "dax0.1")
    assert refusal(bus, machine, f"drivers/{mine}/bind", "dax0.1") == "EBUSY"
    assert refusal(bus, machine, f"drivers/{other}/unbind", "dax0.1") == "ENODEV"


@KERNELS
@pytest.mark.fact("10.5c")
def test_names_for_new_id(boot: Boot, rules: Rules) -> None:
    """As the kernel would write them, of devices that are there or not; the driver tries all that it takes."""
    machine = free(boot, rules, (HIGH, BLOCK), (HIGH + 2 * BLOCK, BLOCK))
    for name in (
        "dax0",
        "dax00.0",
        "dax+0.0",
        " dax0.0",
        "dax0.0x",
        "dax0.0\n\n",
        "text",
        "dax2147483648.0",
        f"dax{'1' * 5000}.0",
    ):
        assert refusal(bus, machine, "drivers/kmem/new_id", name) == "EINVAL"
        assert refusal(bus, machine, "drivers/kmem/remove_id", name) == "EINVAL"
    for name in ("dax9.9", "dax0.-1"):
        bus(machine, "drivers/kmem/new_id", name)
        bus(machine, "drivers/kmem/remove_id", name)
    assert [device.driver for device in machine.dax] == [{Rules.LINUX_6_1: "", NEW: "kmem"}[rules]] * 2
    bus(machine, "drivers/device_dax/new_id", "dax1.0")
    assert [device.driver for device in machine.dax] == [{Rules.LINUX_6_1: "device_dax", NEW: "kmem"}[rules]] * 2


@KERNELS
@pytest.mark.fact("10.5c")
def test_the_bus_lets_drivers_try_in_their_order(boot: Boot, rules: Rules) -> None:
    """device_dax came first; of memory that is soft-reserved it wants nothing on 6.12."""
    machine = free(boot, rules)
    bus(machine, "drivers_probe", "dax0.0")
    assert [device.driver for device in machine.dax] == [{Rules.LINUX_6_1: "device_dax", NEW: "kmem"}[rules]]
    bus(machine, "drivers_probe", "dax0.0")
    assert refusal(bus, machine, "drivers_probe", "dax0.7") == "ENODEV"
    bus(machine, "drivers_autoprobe", "0")
    assert machine.tree.read(f"{BUS}/drivers_autoprobe") == "0\n"


@KERNELS
@pytest.mark.fact("10.5", "10.5d")
def test_what_leaked_is_nobody_s_again_and_device_dax_does_not_forget(boot: Boot, rules: Rules) -> None:
    """EBUSY for both drivers, then EINVAL for device_dax: also of memory that nobody has."""
    machine = free(boot, rules)
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    write(machine, "memory33/state", "online_movable")
    bus(machine, "drivers/kmem/unbind", "dax0.0")
    write(machine, "memory33/state", "offline")
    assert said(machine, "dax0.0/size") == str(512 * MIB)
    assert refusal(bus, machine, "drivers/kmem/bind", "dax0.0") == "EBUSY"
    machine.dax.drivers["device_dax"].ids = {"dax0.0"}
    assert [refusal(bus, machine, "drivers/device_dax/bind", "dax0.0") for _ in range(2)] == ["EBUSY", "EINVAL"]
    assert [block for block in range(32, 36) if state(machine, block) == "offline"] == [32, 33, 34, 35]


@KERNELS
@pytest.mark.fact("10.5d")
def test_a_bind_that_fails_in_the_middle_leaves_nothing_mapped(boot: Boot, rules: Rules) -> None:
    """The first range is claimed and given back when the second one can't be."""
    machine = free(boot, rules)
    machine.tree.write(f"{BUS}/devices/dax0.0/size", str(BLOCK))
    machine.iomem.request(HIGH + 2 * BLOCK, BLOCK, "somebody")
    bus(machine, "devices/dax0.0/mapping", "110000000-117ffffff")
    before = claims(machine)
    machine.dax.drivers["device_dax"].ids = {"dax0.0"}
    assert refusal(bus, machine, "drivers/device_dax/bind", "dax0.0") == "EBUSY"
    assert (claims(machine), list(machine.device_memory)) == (before, [])


@KERNELS
@pytest.mark.fact("10.5", "3.22")
def test_a_block_that_does_not_come_online_is_no_error_of_the_driver(boot: Boot, rules: Rules) -> None:
    """And its neighbours are not tried."""
    machine = free(boot, rules)
    write(machine, "auto_online_blocks", "online_movable")
    log = Log()
    machine.hotplug_memory_notifier(log.callback("guard", {MEM_GOING_ONLINE: NOTIFY_BAD}))
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    asked = [line for line in log if "PREPARE" not in line and "FINISH" not in line]
    assert asked == ["guard GOING_ONLINE(-1,-1)", "guard CANCEL_ONLINE(-1,-1)"]
    assert (machine.dax.find("dax0.0").driver, state(machine, 35)) == ("kmem", "offline")  # type: ignore[union-attr]


@pytest.mark.fact("10.5g", "3.20")
def test_blocks_of_a_device_hold_their_own_memmap_on_6_12(boot: Boot) -> None:
    """If the device's file says so; 6.1 has no such file, and the file does not change while kmem has the device."""
    machine = free(boot, NEW, parameters="memhp_default_state=offline memory_hotplug.memmap_on_memory=Y")
    bus(machine, "devices/dax0.0/memmap_on_memory", "y\n")
    bus(machine, "drivers/kmem/bind", "dax0.0")
    assert [machine.block(number).altmap_pages for number in (32, 35)] == [512, 512]
    assert refusal(bus, machine, "devices/dax0.0/memmap_on_memory", "0") == "EBUSY"
    bus(machine, "devices/dax0.0/memmap_on_memory", "1")
    assert refusal(bus, machine, "devices/dax0.0/memmap_on_memory", "x") == "EINVAL"
    off = free(boot, NEW)
    assert refusal(bus, off, "devices/dax0.0/memmap_on_memory", "1") == "EOPNOTSUPP"
    assert refusal(bus, free(boot, Rules.LINUX_6_1), "devices/dax0.0/memmap_on_memory", "1") == "ENOENT"


@KERNELS
@pytest.mark.fact("10.5c")
def test_the_log_says_why_a_driver_does_not_take_a_device(boot: Boot, rules: Rules, caplog: pytest.LogCaptureFixture) -> None:
    """`new_id` and `drivers_probe` succeed all the same; what is bound, or has no memory, is nothing to warn of."""
    machine = free(boot, rules)
    caplog.clear()
    bus(machine, "devices/dax0.0/size", str(64 * MIB))
    machine.tree.write(f"{REGION}/create", "1")
    for name in ("dax0.0", "dax0.1"):
        bus(machine, "drivers/kmem/new_id", name)
    refused = "kmem: probe of dax0.0 failed: [EINVAL] dax0.0: no range has a whole memory block"
    assert [record.message.partition(" of 0x")[0] for record in caplog.records] == [refused] * 2
    bus(machine, "devices/dax0.0/size", str(BLOCK))
    bus(machine, "drivers/kmem/bind", "dax0.0")
    caplog.clear()
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    for name in ("dax0.0", "dax0.1"):
        bus(machine, "drivers_probe", name)
    assert caplog.records == []


def test_drivers_and_regions_of_another_machine_are_refused(boot: Boot) -> None:
    """Nothing happens on either machine; of two drivers with one name each serves its own machine."""
    asked, other = free(boot, NEW), free(boot, NEW)
    kmem, [region] = other.dax.drivers["kmem"], other.dax.regions
    before = snapshot(asked), snapshot(other)
    for act in (asked.dax.bind, asked.dax.unbind, asked.dax.new_id, asked.dax.remove_id):
        with pytest.raises(InvalidInput, match="expected one of this machine: device_dax, kmem"):
            act(kmem, "dax0.0")
    with pytest.raises(InvalidInput, match="expected a region of this machine"):
        asked.dax.create(region)
    with pytest.raises(InvalidInput, match="expected a region of this machine"):
        asked.dax.delete(region, "dax0.1")
    assert (snapshot(asked), snapshot(other)) == before
    asked.dax.bind(asked.dax.drivers["kmem"], "dax0.0")
    assert [sorted(machine.nodes[1].linked)[:4] for machine in (asked, other)] == [[32, 33, 34, 35], [36, 37, 38, 39]]


# -- regions and devices


@ALL
@pytest.mark.fact("10.5e")
def test_a_device_gives_back_and_another_grows_into_the_gaps(boot: Boot, rules: Rules) -> None:
    """From the lowest one on; a range is extended if the gap is right behind it, and shrinks from the last."""
    machine = free(boot, rules, (HIGH, GIB))
    size = f"{BUS}/devices/{{}}/size"
    machine.tree.write(size.format("dax0.0"), "0x1000000")
    machine.tree.write(f"{REGION}/create", "1")
    for text in ("120000000-127ffffff", "130000000-137ffffff\n", "0x128000000-0x1281fffff", "101000000-107ffffff"):
        bus(machine, "devices/dax0.1/mapping", text)
    first = ["0x120000000-0x127ffffff@0x0", "0x130000000-0x137ffffff@0x8000", "0x128000000-0x1281fffff@0x10000"]
    assert ranges(machine, "dax0.1") == [*first, "0x101000000-0x107ffffff@0x10200"]
    machine.tree.write(size.format("dax0.1"), "0x20000000")
    assert ranges(machine, "dax0.1") == [*first, "0x101000000-0x110dfffff@0x10200"]
    machine.tree.write(size.format("dax0.0"), "0x1400000")
    assert ranges(machine, "dax0.0") == ["0x100000000-0x100ffffff@0x0", "0x110e00000-0x1111fffff@0x1000"]
    machine.tree.write(size.format("dax0.1"), "0x1f000000")
    assert ranges(machine, "dax0.1") == [*first, "0x101000000-0x10fdfffff@0x10200"]
    assert machine.tree.read(f"{REGION}/available_size") == "532676608\n"
    machine.tree.write(size.format("dax0.1"), "0")
    assert (ranges(machine, "dax0.1"), said(machine, "dax0.1/resource")) == ([], "0x100000000")
    machine.tree.write(size.format("dax0.1"), "0x18000000")
    assert ranges(machine, "dax0.1") == ["0x101000000-0x110dfffff@0x0", "0x111200000-0x1193fffff@0xfe00"]


@ALL
@pytest.mark.fact("10.5e")
def test_sizes_and_alignments_that_are_refused(boot: Boot, rules: Rules) -> None:
    """Nothing changes; who has the device is asked after whether the number can be one."""
    machine = free(boot, rules)
    before = snapshot(machine)
    size, align = f"{BUS}/devices/dax0.0/size", f"{BUS}/devices/dax0.0/align"
    found = {text: refusal(machine.tree.write, size, text) for text in ("1", "0x1000", "-1", "text", "0x40000000", f"{1 << 64}")}
    assert found == {
        "1": "EINVAL",
        "0x1000": "EINVAL",
        "-1": "EINVAL",
        "text": "EINVAL",
        "0x40000000": "ENOSPC",
        f"{1 << 64}": "ERANGE",
    }
    found = {text: refusal(machine.tree.write, align, text) for text in ("8192", "0", "text", "1073741824")}
    assert found == {"8192": "EINVAL", "0": "EINVAL", "text": "ENXIO", "1073741824": "EINVAL"}
    assert snapshot(machine) == before
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    assert [refusal(machine.tree.write, path, "2097152") for path in (size, align)] == ["EBUSY", "EBUSY"]
    assert [refusal(machine.tree.write, align, text) for text in ("1073741824", "8192")] == ["EBUSY", "EINVAL"]


@ALL
@pytest.mark.fact("10.5e")
def test_memory_is_mapped_in_whole_subsections_whatever_the_alignment(boot: Boot, rules: Rules) -> None:
    """A device that is aligned to pages still has a size in units of 2 MiB."""
    machine = free(boot, rules)
    machine.tree.write(f"{BUS}/devices/dax0.0/align", "4096\n")
    machine.tree.write(f"{BUS}/devices/dax0.0/size", "0x1000000")
    assert refusal(machine.tree.write, f"{BUS}/devices/dax0.0/size", "0xfff000") == "EINVAL"


@ALL
@pytest.mark.fact("10.5f", "10.5h")
def test_devices_are_created_and_deleted(boot: Boot, rules: Rules) -> None:
    """With the lowest number that is free; the region remembers the youngest, and the first that was never bound."""
    machine = free(boot, rules)
    create, delete = f"{REGION}/create", f"{REGION}/delete"
    assert refusal(machine.tree.write, create, "1") == "ENOSPC"
    machine.tree.write(f"{BUS}/devices/dax0.0/size", str(BLOCK))
    uevents = heard(machine)
    for _ in range(3):
        machine.tree.write(create, "1\n")
    assert [machine.tree.read(f"{REGION}/{name}") for name in ("create", "seed")] == ["dax0.3\n", "dax0.1\n"]
    found = {text: refusal(machine.tree.write, create, text) for text in ("0", "2", "-1", "text", "1 ", "99999999999")}
    assert found == {**dict.fromkeys(("0", "2", "-1", "text", "1 "), "EINVAL"), "99999999999": "ERANGE"}
    machine.tree.write(f"{BUS}/devices/dax0.2/size", str(BLOCK))
    found = {name: refusal(machine.tree.write, delete, name) for name in ("dax0.0", "dax0.2", "dax0.9", "text")}
    assert found == {"dax0.0": "EBUSY", "dax0.2": "EBUSY", "dax0.9": "ENXIO", "text": "ENXIO"}
    machine.tree.write(delete, "dax0.3\n")
    machine.tree.write(delete, "dax0.1")
    assert [machine.tree.read(f"{REGION}/{name}") for name in ("create", "seed")] == ["\n", "\n"]
    machine.tree.write(create, "0x1")
    assert [device.name for device in machine.dax] == ["dax0.0", "dax0.2", "dax0.1"]
    assert said(machine, "dax0.1/dev") == "253:1"
    path = "/devices/platform/hmem.0"
    names = ("add dax0.1", "add dax0.2", "add dax0.3", "remove dax0.3", "remove dax0.1", "add dax0.1")
    assert uevents == [f"{name.split()[0]}@{path}/{name.split()[1]}" for name in names]


@pytest.mark.fact("10.5f")
def test_mappings_that_are_refused(boot: Boot) -> None:
    """What is taken or outside is ENOMEM; 6.12 says nothing of a size that does not suit, and does nothing."""
    for rules, misaligned in ((Rules.LINUX_6_1, "ENXIO"), (NEW, "ok")):
        machine = free(boot, rules)
        machine.tree.write(f"{BUS}/devices/dax0.0/size", str(BLOCK))
        texts = (
            "100000000-1001fffff",
            "120000000-1201fffff",
            "0-1fffff",
            "text",
            "108000000-",
            "-108000000",
            "108000000-109ffffff x",
        )
        found = [refusal(bus, machine, "devices/dax0.0/mapping", text) for text in texts]
        assert found == ["ENOMEM", "ENOMEM", "ENOMEM", "EINVAL", "EINVAL", "EINVAL", "EINVAL"]
        assert refusal(bus, machine, "devices/dax0.0/mapping", "108000000-107ffffff") == "EBUSY"
        if misaligned == "ok":
            bus(machine, "devices/dax0.0/mapping", "108000000-108000fff")
        else:
            assert refusal(bus, machine, "devices/dax0.0/mapping", "108000000-108000fff") == misaligned
        assert ranges(machine, "dax0.0") == ["0x100000000-0x107ffffff@0x0"]


@ALL
@pytest.mark.fact("10.5f")
def test_all_of_the_addresses_are_an_empty_range(boot: Boot, rules: Rules) -> None:
    """The kernel counts their bytes in 64 bits, and gets 0: a success for a device without ranges."""
    machine = free(boot, rules)
    assert refusal(bus, machine, "devices/dax0.0/mapping", "0-ffffffffffffffff") == "EBUSY"
    bus(machine, "devices/dax0.0/size", "0")
    bus(machine, "devices/dax0.0/mapping", "0-ffffffffffffffff")
    assert ranges(machine, "dax0.0") == []


@KERNELS
@pytest.mark.fact("10.5b")
def test_the_uevent_of_a_mapping_is_checked_and_nobody_hears_of_it(boot: Boot, rules: Rules) -> None:
    """It takes what that of its device takes; but a mapping is on no bus."""
    machine = reserve(boot, rules)
    events = heard(machine)
    for text in ("bogus", "change bogus"):
        found = [refusal(bus, machine, f"devices/dax0.0/{file}", text) for file in ("uevent", "mapping0/uevent")]
        assert found == ["EINVAL", "EINVAL"]
    bus(machine, "devices/dax0.0/mapping0/uevent", "change")
    assert (events, said(machine, "dax0.0/mapping0/uevent")) == ([], "")


@KERNELS
@pytest.mark.fact("10.5b")
def test_the_files_of_a_device(boot: Boot, rules: Rules) -> None:
    """With their modes; a file of a device that was deleted is ENODEV."""
    machine = free(boot, rules)
    memmap = ["memmap_on_memory"] if rules is NEW else []
    names = ["align", "dev", "mapping", "mapping0", *memmap, "modalias", "numa_node", "power", "resource", "size", "subsystem"]
    assert machine.tree.list(f"{BUS}/devices/dax0.0") == [*names, "target_node", "uevent"]
    modes = {name: f"{machine.tree.mode(f'{BUS}/devices/dax0.0/{name}'):o}" for name in ("align", "mapping", "resource", "dev")}
    assert modes == {"align": "644", "mapping": "200", "resource": "400", "dev": "444"}
    assert machine.tree.list(f"{BUS}/devices/dax0.0/mapping0") == ["end", "page_offset", "power", "start", "uevent"]
    assert machine.tree.list(REGION) == ["align", "available_size", "create", "delete", "id", "seed", "size"]
    machine.tree.write(f"{BUS}/devices/dax0.0/size", "0")
    assert not machine.tree.exists(f"{BUS}/devices/dax0.0/mapping0")
    machine.tree.write(f"{REGION}/create", "1")
    file = machine.tree.open(f"{BUS}/devices/dax0.1/size")
    machine.tree.write(f"{REGION}/delete", "dax0.1")
    assert refusal(file.read) == "ENODEV"


def test_a_machine_without_such_memory_has_no_dax_bus(boot: Boot) -> None:
    """Nothing is there that nobody asked for."""
    assert not boot("1GiB").tree.exists(BUS)


# -- locks


def test_a_device_can_not_be_resized_while_its_memory_is_added(boot: Boot) -> None:
    """Who wants to waits for the device, which waits for device_hotplug_lock."""
    machine = free(boot, NEW)
    with machine.locks.device_hotplug:
        binder = in_thread(lambda: bus(machine, "drivers/kmem/bind", "dax0.0"), "binder")
        until_parked(binder)
        resizer = in_thread(lambda: refusal(bus, machine, "devices/dax0.0/size", "0"), "resizer")
        until_parked(resizer)
    binder.result()
    assert resizer.result() == "EBUSY"


# -- tiers


@KERNELS
@pytest.mark.fact("9.2a")
def test_memory_of_dax_is_slow_where_it_comes_first(boot: Boot, rules: Rules) -> None:
    """A node is in the tier of what claimed it first; the tier comes and goes with its nodes."""
    machine = boot(["3GiB", "512MiB"], rules=rules, parameters="memhp_default_state=offline", soft_reserved=[(HIGH, 512 * MIB)])
    [device] = machine.dax
    bus(machine, f"drivers/{device.driver}/unbind", "dax0.0")
    assert machine.tiers.nodes == {4: {0}}
    bus(machine, "drivers/kmem/new_id", "dax0.0")
    uevents = heard(machine)
    write(machine, "memory33/state", "online_movable")
    machine.add_memory(1, 8 * GIB, BLOCK)
    write(machine, "memory64/state", "online_movable")
    assert machine.tree.read("/sys/devices/virtual/memory_tiering/memory_tier22/nodelist") == "1\n"
    write(machine, "memory33/state", "offline")
    assert machine.tiers.nodes == {4: {0}, 22: {1}}
    write(machine, "memory64/state", "offline")
    assert [uevent for uevent in uevents if "tier" in uevent] == [
        "add@/devices/virtual/memory_tiering/memory_tier22",
        "remove@/devices/virtual/memory_tiering/memory_tier22",
    ]
    bus(machine, "drivers/kmem/unbind", "dax0.0")
    write(machine, "memory64/state", "online_movable")
    assert machine.tiers.nodes == {4: {0, 1}}


@pytest.mark.fact("9.9")
def test_the_model_warns_of_what_real_kernels_crash_at(boot: Boot, caplog: pytest.LogCaptureFixture) -> None:
    """kmem takes all of its own away while other memory of the node, which came later, is online."""
    machine = boot(["3GiB", "512MiB"], rules="6.12", parameters="memhp_default_state=offline", soft_reserved=[(HIGH, 512 * MIB)])
    machine.add_memory(1, 8 * GIB, BLOCK)
    write(machine, "memory64/state", "online_movable")
    assert machine.tiers.forgets_used(1)
    bus(machine, "drivers/kmem/unbind", "dax0.0")
    assert "would crash at MEM_OFFLINE" in caplog.text
    write(machine, "memory64/state", "offline")
    assert machine.tiers.nodes == {4: {0}}


@pytest.mark.fact("9.2a")
def test_a_refusal_of_mem_online_leaves_no_tier(boot: Boot) -> None:
    """As documented, NOTIFY_BAD takes the memory back; the node never was in a tier."""
    machine = boot(["1GiB", 0], parameters="memhp_default_state=offline")
    machine.add_memory(1, HIGH, BLOCK)
    before = dict(machine.tiers.nodes)
    machine.hotplug_memory_notifier(lambda block, action, arg: NOTIFY_BAD if action.name == "MEM_ONLINE" else 1)  # type: ignore[arg-type,return-value]
    assert refusal(write, machine, "memory32/state", "online") == "EPERM"
    assert machine.tiers.nodes == before
