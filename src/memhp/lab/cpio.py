"""The newc form of cpio archives, which the kernel unpacks as its first root (Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "device", "directory", "file", "link", "newc"]

_END = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive; ``device`` is the major and minor number of a device file."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    """Make a directory that everybody may enter."""
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """Make a file."""
    return Entry(name, stat.S_IFREG | mode, data)


def link(name: str, target: str) -> Entry:
    """Make a symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int) -> Entry:
    """Make a character device."""
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def newc(entries: Iterable[Entry]) -> bytes:
    """Write an archive; a directory must come before what is in it."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry(_END, 0)], 1):
        name = entry.name.encode() + b"\0"
        major, minor = entry.device
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), length of the name, check sum
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
        out += b"070701" + "".join(f"{field:08X}" for field in fields).encode()
        for part in (name, entry.data):
            out += part
            out += bytes(-len(out) % 4)
    return bytes(out)
