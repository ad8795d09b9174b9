"""Copies of machines' files, made from descriptions: what the tests of userland list, and compare C tools on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = "sys/devices/system/memory"
NODE = "sys/devices/system/node"
FIRMWARE = "sys/firmware/memory"
PARAMETERS = "sys/module/memory_hotplug/parameters"


@dataclass
class TreeSpec:
    """A machine's memory files.

    Attributes:
        block_size: the text of block_size_bytes.
        blocks: for each id the texts of its files (without a newline) and its ``nodes``.
        node_links: whether the nodes' own directories are there, with links to their blocks.
        firmware: for each id the texts of its files in /sys/firmware/memory (s390).
        files: further files by their paths below the root.
    """

    block_size: str = "8000000"
    blocks: dict[int, dict[str, Any]] = field(default_factory=dict)
    node_links: bool = True
    firmware: dict[int, dict[str, str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, described: dict[str, Any]) -> TreeSpec:
        """Read a description from JSON, whose keys are texts."""
        numbered = {name: {int(key): value for key, value in described.get(name, {}).items()} for name in ("blocks", "firmware")}
        return cls(**{**described, **numbered})

    def write(self, root: Path) -> Path:
        """Make the files."""
        memory = root / MEMORY
        memory.mkdir(parents=True)
        write(memory / "block_size_bytes", self.block_size)
        for number, facts in self.blocks.items():
            self._write_block(root, memory / f"memory{number}", facts)
        for number, texts in self.firmware.items():
            for name, text in texts.items():
                write(root / FIRMWARE / f"memory{number}" / name, text)
        for path, text in self.files.items():
            write(root / path, text)
        return root

    def _write_block(self, root: Path, directory: Path, facts: dict[str, Any]) -> None:
        directory.mkdir()
        for name, text in facts.items():
            if name != "nodes":
                write(directory / name, text)
        for node in facts.get("nodes", []):
            os.symlink(f"../../node/node{node}", directory / f"node{node}")
            if self.node_links:
                links = root / NODE / f"node{node}"
                links.mkdir(parents=True, exist_ok=True)
                os.symlink(f"../../memory/{directory.name}", links / directory.name)


def write(path: Path, text: str) -> None:
    """Write a line as the kernel does; '' stays an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n" if text else "", encoding="utf-8")


def block(state: str = "online", zones: str = "Normal", removable: str = "1", nodes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Describe a block."""
    return {"state": state, "removable": removable, "valid_zones": zones, "phys_device": "0", "nodes": list(nodes)}
