"""Record what a real chmem does: ``python tests/record_chmem.py CHMEM`` (util-linux 2.42; a path, or a command), as root.

Makes ``tests/data/lsmem/chmem-2.42.json``. The program gets a tree of plain files over /sys in a mount namespace of its own,
so it can't reach the real one; ``strace`` notes its writes, and makes the one fail that is to fail.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trees import FIRMWARE, TreeSpec, block

RECORDED = Path(__file__).parent / "data" / "lsmem" / "chmem-2.42.json"

PLAIN = TreeSpec(
    blocks={
        0: block(zones="none"),
        1: block(zones="DMA32"),
        2: block(),
        3: block(zones="Movable"),
        4: block("offline", "Normal Movable"),
        5: block("offline", "Normal"),
        6: block("offline", "Movable Normal"),
        7: block("going-offline", "Movable Normal"),
        9: block("offline", "DMA32 Movable"),
        10: block(zones="Movable"),
    }
)
FIRMWARE_LIST = {
    number: {"config": str(int(number in {0, 1, 2, 3, 5})), "memmap_on_memory": str(int(number in {3, 4}))} for number in range(8)
}
TREES = {
    "plain": PLAIN,
    "s390": TreeSpec(
        block_size="10000000",
        blocks={
            0: block(zones="DMA"),
            1: block(),
            2: block("offline", "Normal Movable"),
            3: block(zones="Movable"),
            5: block("offline", "Movable"),
        },
        firmware=FIRMWARE_LIST,
    ),
    "old": TreeSpec(blocks={0: {"state": "online"}, 1: {"state": "offline"}, 2: {}}),
}

LINES = {
    "plain": """
-e 128M
-e 256
-e 1G -v
-e 2G
-e 0
-d 128M -v
-d 256M -v
-d 4G -v
-d 1G
-d -b 1-3 -v
-d -b 3
-d -b 0-10 -v
-e -b 0-10 -v
-e -b 4
-e -b 8
-e -b 7-9 -v
-e -b 3 -v
-e 0x20000000-0x2fffffff -v
-d 0x0-0x7ffffff -v
-d 0X0-0x7ffffff
-e -z Movable 1G -v
-e -z normal 1G -v
-e -z DMA 1G -v
-e -z dma32 -b 0-10 -v
-e -z Movable -b 4-6 -v
-d -z Normal 256M -v
-d -z DMA 1G -v
-d -z movable -b 0-10 -v
-e -z Device 128M
-d --zone=none 128M
-z foo -e 128
-c 128
-g -b 3
-c -d 128
-c -e 128
-c -g 128
-c -m x 128
-m 1 -e 128
-e -m 1 128
-g -m 1 128
-e -d 1
-d -e 1
-e
128
-v 128
-e 1 2
-e foo
-e 1.5G
-e 1.5
-e 1.5K
-e 0.125G
-e 0.25G
-e 0.375G
-e 128.0M
-e 1.G
-e .5G
-e 1e3
-e 128MiB
-e 128Mib
-e 128mib
-e 128MIB
-e 128MB
-e 128Mb
-e 128m
-e 128B
-e 134217728B
-e 1KB
-e 1k
-e 0x80
-e 0x80M
-e 0x8000000
-e 010
-e 0200
-e 08
-e +128
-e 129
-e 99999999999999999999
-e 16E
-e 15E
-e 1Z
-e -- -128
-e 5-
-e -
-e --5-6
-e 1-2-3
-e -b foo
-e -b 0x5
-e -b 4-foo
-e -b foo-5
-e -b 3-1
-e -b +5
-e -b 18446744073709551615
-e -b 18446744073709551616
-e 0-1
-e 0x0-1
-e 0x1-0x7ffffff
-e 0x0-0x8000000
-e 0xg-0x7ffffff
-e 0x0-0xfffffffffffffffff
-e 0x8000000-0x7ffffff
-z
--zone
--zo=Movable -e 128
--foo
-x
--e
--enable 128 --verb
--disable --blocks 3 --verbose
-evb 4
-ebz Movable 4-6
FAIL=1:EBUSY -d 256M -v
FAIL=1:EBUSY -d 256M
FAIL=1:EBUSY -d -b 1-3 -v
FAIL=2:EPERM -d -b 1-3
FAIL=1:EINVAL -e -b 4-6 -v
FAIL=1:EBUSY -e -b 4
FAIL=1:EBUSY -d -b 3
FAIL=2:ENOMEM -e 256M -v
""",
    "s390": """
-e 256M -v
-e 2G -v
-e 512
-d 256M -v
-d 2G -v
-d -b 0-7 -v
-e -b 0-7 -v
-e -b 4 -v
-d -b 4 -v
-c 256M -v
-c 512M
-c 4G -v
-c -b 0-7 -v
-c -b 4-6
-g 256M -v
-g 4G -v
-g -b 0-7 -v
-g -b 0-7
-g -b 5
-c -m 1 256M -v
-c -m 0 1G -v
-c -m 1 -b 0-7 -v
-c -m 1 -b 0-4
-c -m 2 -b 4 -v
-m 1 -c 0x40000000-0x4fffffff -v
-z Movable -e -b 0-3 -v
-z Normal -d 1G -v
FAIL=1:EBUSY -e 512M -v
FAIL=1:EBUSY -e -b 2-5 -v
FAIL=2:EBUSY -d 512M -v
FAIL=2:EBUSY -d -b 0-3 -v
FAIL=1:ENOMEM -c 512M -v
FAIL=1:ENOMEM -c 512M
FAIL=1:ENOMEM -c -b 4-7 -v
FAIL=1:EINVAL -c -m 1 -b 4-7 -v
FAIL=1:EBUSY -g -b 2-5 -v
FAIL=1:EBUSY -g 256M -v
""",
    "old": """
-e 128M -v
-e 1G -v
-d -b 0-2 -v
-e -b 0-2 -v
-z Movable -e -b 1 -v
-z foo -e -b 1
""",
}

_WRITE = re.compile(r'^write\(\d+<(.*?)>, "(.*)", \d+\) += (-?\d+)(?: (\w+))?')


def split(line: str) -> tuple[str, list[str]]:
    """Take a line apart: which write is to fail and how, and the arguments."""
    words = line.split()
    fail = words.pop(0).removeprefix("FAIL=") if words and words[0].startswith("FAIL=") else ""
    return fail, words


def watched(spec: TreeSpec) -> list[str]:
    """Name the files that are written to."""
    states = [f"/sys/devices/system/memory/memory{number}/state" for number in spec.blocks]
    return states + [f"/{FIRMWARE}/memory{number}/{name}" for number in spec.firmware for name in ("config", "memmap_on_memory")]


def ask(chmem: list[str], spec: TreeSpec, line: str) -> dict[str, Any]:
    """Run it once; gives what it says, its exit code and its writes (file, text, errno or '')."""
    fail, words = split(line)
    with tempfile.TemporaryDirectory() as directory:
        root = spec.write(Path(directory) / "root")
        trace = Path(directory) / "trace"
        strace = ["strace", "-qq", "-y", "-o", str(trace), "-e", "trace=write"]
        if fail:
            at, _, name = fail.partition(":")
            strace += ["-e", f"inject=write:error={name}:when={at}"]
        for path in watched(spec):
            strace += ["-P", path]
        inside = ["sh", "-c", 'mount --bind "$0/sys" /sys && exec "$@"', str(root), *strace, *chmem, *words]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        done = subprocess.run(["/usr/bin/unshare", "-m", *inside], check=False, capture_output=True, text=True, env=environment)
        writes = [match.groups() for match in map(_WRITE.match, trace.read_text(encoding="utf-8").splitlines()) if match]
    return {
        "out": done.stdout,
        "err": done.stderr,
        "code": done.returncode,
        "writes": [[path.removeprefix("/sys/"), text, error or ""] for path, text, _, error in writes],
    }


def main(chmem: str) -> None:
    """Ask it everything."""
    command = shlex.split(chmem)
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    runs = {name: {line: ask(command, TREES[name], line) for line in lines.strip().split("\n")} for name, lines in LINES.items()}
    RECORDED.write_text(json.dumps({"version": version, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
