"""Record what a real lsmem prints: ``python tests/record_lsmem.py LSMEM`` (util-linux 2.42; a path, or a command).

Makes ``tests/data/lsmem/2.42.json``. tests/data/README.md says where such a program can be had.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trees import PARAMETERS, TreeSpec, block

RECORDED = Path(__file__).parent / "data" / "lsmem" / "2.42.json"

MIXED = TreeSpec(
    blocks={
        0: block(zones="none", nodes=(0,)),
        1: block(zones="DMA32"),
        2: block(zones="DMA32"),
        3: block(zones="DMA32", removable="0"),
        **{number: block() for number in range(32, 38)},
        38: block(nodes=(0, 1)),
        39: block("offline", "Normal Movable", nodes=(1,)),
        40: block("offline", "Normal Movable", nodes=(1,)),
        41: block("going-offline", "Movable Normal", nodes=(1,)),
        42: block(zones="Movable", nodes=(1,)),
        43: block(zones="Movable", nodes=(1,)),
        1000: block("odd", "Elsewhere", nodes=(3,)),
        1001: block("odd", "Elsewhere", nodes=(3,)),
    },
    files={f"{PARAMETERS}/memmap_on_memory": "N"},
)
TREES = {
    "mixed": MIXED,
    "s390": TreeSpec(
        block_size="10000000",
        blocks={n: block("offline" if n in {5, 9} else "online", "Normal" if n < 8 else "Movable") for n in range(10)},
        node_links=False,
        firmware={n: {"config": str(int(n < 10 and n != 4)), "memmap_on_memory": str(int(n % 4 == 1))} for n in range(14)},
        files={f"{PARAMETERS}/memmap_on_memory": "Y"},
    ),
    "arm64-16k": TreeSpec(
        block_size="8000000",
        blocks={n: block(zones="DMA" if n < 24 else "Normal") for n in range(16, 48) if n != 30},
        files={f"{PARAMETERS}/memmap_on_memory": "force"},
    ),
    "large": TreeSpec(block_size="80000000", blocks={n: block(nodes=(n // 1000,)) for n in range(985, 1025) if n % 25}),
    "old": TreeSpec(
        blocks={n: {"state": "online" if n % 3 else "offline", "removable": str(n % 2)} for n in range(6)}, node_links=False
    ),
    "torn": TreeSpec(blocks={0: {}, 1: block(), 2: {"nodes": [1]}, 3: {**block(), "valid_zones": "", "removable": "x"}}),
    "rounded": TreeSpec(block_size="fffff00000", blocks={0: block(), 5: block()}),
    "none": TreeSpec(),
    "no-size": TreeSpec(block_size="", blocks={0: block()}),
}
"""Machines of several kinds: x86-64 with holes, s390 with a firmware's list, arm64, 2 GiB blocks, a kernel before 3.18."""

SHAPES = """

-a
-b
-b -a
-n
-n -a -b
-J
-J -b -a
-J --output-all
-P --output-all
-r
-r -n --output-all
--output-all
--output-all -a -n
-a -o +NODE,ZONES
-S none
-S NODE
-S ZONES --output-all
-S none -o STATE,ZONES,NODE,REMOVABLE
--split=CONFIGURED,MEMMAP-ON-MEMORY
--summary
--summary -b
"""
"""Every shape of output."""

WORDS = """
-J -a
-J -o NODE,ZONES
-P
-P -a -b
-r -n
-o SIZE
-o size,Range,NODE
-n -o SIZE
-n -o REMOVABLE,SIZE
-o REMOVABLE
-o STATE,RANGE
-S STATE
-S REMOVABLE,NODE
-S NONE
--summary=only
--summary=never
--summary=always -J
-J --summary=always
-r --summary=always
--summary=foo
-J --summary=only
--summary=never --summary=only
-J -P
-P -r
-r -J
-S NODE -a
-a --split none
-o foo
-o RANGE,foo
-o foo,RANGE
-o RANGE,
-o ,RANGE
-o RANGE,,SIZE
-o ,
-o RANGE,,
-o +
-o +RANGE
-o +RANGE,RANGE
-o RANGE,SIZE,STATE,REMOVABLE,BLOCK,NODE,ZONES,RANGE,SIZE,STATE,REMOVABLE,BLOCK,NODE,ZONES,RANGE,SIZE,STATE,REMOVABLE
-o RANGE,SIZE,STATE,REMOVABLE,BLOCK,NODE,ZONES,RANGE,SIZE,STATE,REMOVABLE,BLOCK,NODE,ZONES,RANGE,SIZE,STATE,REMOVABLE,BLOCK
-S foo
-S none,STATE
--foo
--foo=bar
--s
--su
--sum=on
--no
-x
-ax
-ab -x
-o
--output
--all=3
--out RANGE
--output-a
-aJ
-anb -oRANGE,SIZE
xx
-a xx -b
-- -a
-a --
-
LSMEM_COLUMNS=NODE,RANGE
LSMEM_COLUMNS=NODE -o RANGE
LSMEM_COLUMNS=+NODE -a
LSMEM_COLUMNS= -a
LSMEM_COLUMNS=foo --summary
LSMEM_COLUMNS=foo
POSIXLY_CORRECT=1 -a xx -x
"""
"""Every option, right and wrong; a word with = before the options is a variable."""


def split(line: str) -> tuple[dict[str, str], list[str]]:
    """Take a line apart: variables, and arguments."""
    words = line.split()
    count = next((at for at, word in enumerate(words) if word.startswith("-") or "=" not in word), len(words))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def ask(lsmem: list[str], root: Path, line: str) -> dict[str, Any]:
    """Run it; the root stands as ROOT in what it says."""
    variables, words = split(line)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", **variables}
    command = [*lsmem, "-s", str(root), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    return {"out": done.stdout, "err": done.stderr.replace(str(root), "ROOT"), "code": done.returncode}


def main(lsmem: str) -> None:
    """Ask it on each tree."""
    command = shlex.split(lsmem)
    recorded: dict[str, Any] = {"version": ask(command, Path("/"), "--version")["out"].strip(), "runs": {}}
    for name, spec in TREES.items():
        with tempfile.TemporaryDirectory() as directory:
            root = spec.write(Path(directory) / "root")
            lines = (SHAPES + WORDS if name == "mixed" else SHAPES).strip("\n").split("\n")
            recorded["runs"][name] = {line: ask(command, root, line) for line in ["", *lines]}
    RECORDED.parent.mkdir(parents=True, exist_ok=True)
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
