"""Capture a machine's memory files, and what its lsmem says of them: ``python3 capture.py > tests/data/trees/NAME.json``.

Standard library only, so that it runs in a guest. Nothing but files about memory is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY = Path("/sys/devices/system/memory")
FILES = ("state", "online", "valid_zones", "removable", "phys_device", "phys_index")
OTHERS = ("auto_online_blocks", "crash_hotplug")
PARAMETERS = Path("/sys/module/memory_hotplug/parameters")
LINES = ("-J -a", "-J -b -o RANGE,SIZE,STATE,REMOVABLE,BLOCK,NODE,ZONES", "-P", "-r -o +NODE,ZONES", "-r -S NODE")


def text(path: Path) -> str | None:
    """Give a file's line; None if it can't be read."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except OSError:
        return None


def block(path: Path) -> dict[str, Any]:
    """Describe a block."""
    found = {name: value for name in FILES if (value := text(path / name)) is not None}
    return {**found, "nodes": sorted(int(one.name[4:]) for one in path.glob("node[0-9]*"))}


def main() -> None:
    """Print everything."""
    places = [*(MEMORY / name for name in OTHERS), *(sorted(PARAMETERS.iterdir()) if PARAMETERS.exists() else [])]
    files = {str(place)[1:]: value for place in places if (value := text(place)) is not None}
    numbers = sorted(int(path.name[6:]) for path in MEMORY.glob("memory[0-9]*"))
    tree = {
        "block_size": text(MEMORY / "block_size_bytes"),
        "node_links": True,
        "files": files,
    }
    said = {line: subprocess.run(["lsmem", *line.split()], check=True, capture_output=True, text=True).stdout for line in LINES}  # noqa: S607
    # A line for each block, so that a person can read it.
    blocks = ",\n   ".join(f'"{number}": {json.dumps(block(MEMORY / f"memory{number}"))}' for number in numbers)
    sys.stdout.write(
        f'{{\n "release": {json.dumps(os.uname().release)},\n "tree": {json.dumps(tree)[:-1]}, "blocks": {{\n   {blocks}}}}},\n'
    )
    sys.stdout.write(f' "lsmem": {json.dumps(said)}\n}}\n')


if __name__ == "__main__":
    main()
