"""Where the files of memory hotplug are (Documentation/ABI/testing, sysfs-devices-memory and others; filesystems/proc)."""

__all__ = ["BUS", "CPU", "FIRMWARE_MEMMAP", "FIRMWARE_MEMORY", "MEMORY", "MODULE", "NODE", "PARAMETERS", "PROC"]

PROC = "/proc"
MEMORY = "/sys/devices/system/memory"
CPU = "/sys/devices/system/cpu"
NODE = "/sys/devices/system/node"
BUS = "/sys/bus/memory"
MODULE = "/sys/module/memory_hotplug"
PARAMETERS = f"{MODULE}/parameters"
FIRMWARE_MEMMAP = "/sys/firmware/memmap"
FIRMWARE_MEMORY = "/sys/firmware/memory"
