"""What userland sees of a machine, as one flat mapping: the parts that only some machines have."""

from __future__ import annotations

from memhp.abi.state import machine_state

FILES = {
    "/sys/devices/system/memory/auto_online_blocks": "offline\n",
    "/sys/devices/virtual/memory_tiering/memory_tier22/nodelist": "1\n",
    "/sys/devices/virtual/memory_tiering/memory_tier4/nodelist": "0\n",
    "/sys/bus/dax/devices/dax0.0/size": "268435456\n",
    "/sys/bus/dax/devices/dax0.0/align": "2097152\n",
    "/sys/bus/dax/devices/dax0.0/resource": "0x100000000\n",
    "/sys/bus/dax/devices/dax0.0/mapping": "",
    "/sys/bus/dax/devices/dax0.0/mapping0/start": "0x100000000\n",
    "/sys/bus/dax/devices/dax0.0/mapping0/end": "0x10fffffff\n",
    "/sys/bus/dax/devices/dax0.0/mapping0/page_offset": "0x0\n",
    "/sys/bus/dax/drivers/kmem/dax0.0/size": "268435456\n",
    "/sys/bus/dax/drivers/device_dax/bind": "",
    "/sys/bus/dax/devices/dax0.0/../dax_region/size": "536870912\n",
    "/sys/bus/dax/devices/dax0.0/../dax_region/available_size": "268435456\n",
    "/sys/bus/dax/devices/dax0.0/../dax_region/seed": "\n",
    "/sys/bus/dax/devices/dax0.0/../dax_region/create": "dax0.1\n",
    "/proc/zoneinfo": "",
    "/proc/meminfo": "MemTotal:  1024 kB\n",
    "/proc/iomem": """\
00001000-0009fbff : System RAM
100000000-11fffffff : hmem.0
  100000000-11fffffff : Soft Reserved
    100000000-10fffffff : dax0.0
      100000000-10fffffff : System RAM (kmem)
140000000-17fffffff : virtio0
1540000000-15bfffffff : PCI Bus 0000:00
""",
}


def read(path: str) -> str:
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory", path)
    return FILES[path]


def names(path: str) -> list[str]:
    below = [file.removeprefix(f"{path}/") for file in FILES if file.startswith(f"{path}/")]
    return sorted({name.partition("/")[0] for name in below} - {".."})


def test_dax_devices_tiers_and_claims() -> None:
    """Each device with its driver and ranges, its region, the tiers; of /proc/iomem what is memory from 4 GiB on."""
    state = machine_state(read, names)
    wanted = ("dax0.0", "dax0.0/", "dax0", "memory_tier4", "memory_tier22", "iomem", "MemTotal")
    assert {key: state[key] for key in wanted} == {
        "dax0.0": "kmem size 268435456 align 2097152 resource 0x100000000 0x100000000-0x10fffffff@0x0",
        "dax0.0/": "align mapping mapping0 resource size",
        "dax0": "size 536870912 available_size 268435456 seed  create dax0.1",
        "memory_tier4": "0",
        "memory_tier22": "1",
        "iomem": (
            "100000000-11fffffff : hmem.0; >100000000-11fffffff : Soft Reserved; >>100000000-10fffffff : dax0.0; "
            ">>>100000000-10fffffff : System RAM (kmem); 140000000-17fffffff : virtio0"
        ),
        "MemTotal": "1024",
    }
