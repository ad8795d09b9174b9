"""Small copies of machines, written as files: what a capture of /sys and /proc would hold."""

from __future__ import annotations

import array
from collections.abc import Mapping
from pathlib import Path

PAGES = 32768
"""Pages of a block of 128 MiB."""
BUDDY = 1 << 10
SLAB = 1 << 7
RESERVED = 1 << 32
ANON = 0x5868
"""UPTODATE LRU ACTIVE MMAP ANON SWAPBACKED: a page of a process, as seen on 6.1, 6.12 and 6.18."""


def block(root: Path, number: int, *, state: str = "online", zones: str = "Normal", node: int = 0) -> None:
    """Write a memory block."""
    place = root / f"sys/devices/system/memory/memory{number}"
    place.mkdir(parents=True)
    (place / "state").write_text(f"{state}\n")
    (place / "valid_zones").write_text(f"{zones}\n")
    (place / f"node{node}").symlink_to(f"../../node/node{node}")
    home = root / f"sys/devices/system/node/node{node}"
    home.mkdir(parents=True, exist_ok=True)
    (home / f"memory{number}").symlink_to(f"../../memory/memory{number}")
    (root / "sys/devices/system/memory/block_size_bytes").write_text("8000000\n")


def zones(root: Path, *lines: tuple[int, str, int, int, int], pcp: int = 0, high: int = 0) -> None:
    """Write /proc/zoneinfo: node, name, free, present, managed of each zone."""
    text = ""
    for node, name, free, present, managed in lines:
        text += f"Node {node}, zone {name:>8}\n  pages free     {free}\n        high     {high}\n"
        text += f"        spanned  {present}\n        present  {present}\n        managed  {managed}\n"
        text += (
            f"  pagesets\n    cpu: 0\n              count:    {pcp}\n              high:     {pcp}\n              batch:    0\n"
        )
        text += "  start_pfn:           1\n"
    proc(root, "zoneinfo", text)


def proc(root: Path, name: str, text: str) -> None:
    """Write a file of /proc."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / name).write_text(text)


def words(root: Path, runs: Mapping[int, list[tuple[int, int]]], name: str = "kpageflags") -> None:
    """Write /proc/kpageflags: for each block the words of its pages as (how many, word); the rest of a block is free."""
    (root / "proc").mkdir(exist_ok=True)
    with (root / "proc" / name).open("wb") as file:
        for number, parts in runs.items():
            given = array.array("Q")
            for count, word in parts:
                given.extend([word] * count)
            given.extend([BUDDY if name == "kpageflags" else 0] * (PAGES - len(given)))
            file.seek(number * PAGES * 8)
            file.write(given.tobytes())


def ram(root: Path, *ranges: tuple[int, int, str]) -> None:
    """Write /proc/iomem."""
    proc(root, "iomem", "".join(f"{first:08x}-{last:08x} : {name}\n" for first, last, name in ranges))
