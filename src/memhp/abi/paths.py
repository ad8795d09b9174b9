"""Where the files of memory hotplug are (Documentation/ABI/testing, sysfs-devices-memory and others; filesystems/proc)."""

__all__ = [
    "BUS",
    "CPU",
    "DAX",
    "FIRMWARE_MEMMAP",
    "FIRMWARE_MEMORY",
    "MEMORY",
    "MODULE",
    "NODE",
    "PARAMETERS",
    "PLATFORM",
    "PROC",
    "TIERS",
]

PROC = "/proc"
MEMORY = "/sys/devices/system/memory"
CPU = "/sys/devices/system/cpu"
NODE = "/sys/devices/system/node"
BUS = "/sys/bus/memory"
DAX = "/sys/bus/dax"
MODULE = "/sys/module/memory_hotplug"
PLATFORM = "/sys/devices/platform"
TIERS = "/sys/devices/virtual/memory_tiering"
PARAMETERS = f"{MODULE}/parameters"
FIRMWARE_MEMMAP = "/sys/firmware/memmap"
FIRMWARE_MEMORY = "/sys/firmware/memory"
