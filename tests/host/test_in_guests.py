"""On real kernels: memhp beside Debian's lsmem and chmem, in the same guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memhp.lab.boot import Session

# Tables are wider in Debian's lsmem, which is older; test_list.py compares those with 2.42.
SAME = """
for options in "-J -a" "-J -b -o RANGE,SIZE,STATE,REMOVABLE,BLOCK,NODE,ZONES" "-P" "-P -a -b" "-r -o +NODE,ZONES" "-r -S NODE"; do
    lsmem $options >/tmp/theirs
    python3 -m memhp.cli list $options >/tmp/ours
    cmp /tmp/theirs /tmp/ours && echo "same $options"
done
"""

MOVES = """
cd /root
now() { cat /sys/devices/system/memory/memory*/state /sys/devices/system/memory/memory*/valid_zones; }
same() {
    "$@" >/tmp/theirs 2>&1; theirs=$?
    after=$(now)
    restore
    python3 /root/ours.py "$@" >/tmp/ours 2>&1; ours=$?
    [ "$after" = "$(now)" ] || echo "other state: $*"
    restore
    cmp /tmp/theirs /tmp/ours && echo "$theirs $ours $*"
}
restore() {
    for block in 32 33 34 35; do echo offline >/sys/devices/system/memory/memory$block/state 2>/dev/null; done
    echo online_movable >/sys/devices/system/memory/memory34/state
}
restore
same chmem -e -b 32-35 -v
same chmem -e 256M -v
same chmem -d -b 32-35 -v
same chmem -d 128M -v
same chmem -d -b 0 -v
same chmem -e -z Normal -b 32-33 -v
same chmem -e -z Movable 1G -v
same chmem -e -b 40-41
"""

OURS = """
import sys
from memhp.cli import chmem

sys.exit(chmem.main(sys.argv[2:], "chmem"))
"""

KERNELS = pytest.mark.parametrize("kernel", ["6.1", "6.12"])


@pytest.mark.qemu
@KERNELS
def test_the_replacements_do_what_the_real_ones_do(kernel: str, tmp_path: Path) -> None:
    """On a machine with a hole, two nodes, and blocks in every state: the same bytes, exit codes, states and zones."""
    scripts = {"same.sh": SAME, "moves.sh": MOVES, "ours.py": OURS}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    add = [(tmp_path / name, f"/root/{name}") for name in scripts]
    with Session(kernel, ["512MiB", 0], parameters="memhp_default_state=offline", add=add) as guest:
        guest.plug("512MiB", node=1)
        guest.write("/sys/devices/system/memory/memory33/state", "online_movable")
        same = guest.run("bash /root/same.sh").output.splitlines()
        moves = guest.run("bash /root/moves.sh").output.splitlines()
        listed = json.loads(guest.run("python3 -m memhp.cli list --format json").output)
    assert len(same) == 6
    assert all(line.startswith("same ") for line in same)
    assert moves == [
        "0 0 chmem -e -b 32-35 -v",
        "0 0 chmem -e 256M -v",
        "0 0 chmem -d -b 32-35 -v",
        "0 0 chmem -d 128M -v",
        "1 1 chmem -d -b 0 -v",
        "0 0 chmem -e -z Normal -b 32-33 -v",
        "64 64 chmem -e -z Movable 1G -v",
        "1 1 chmem -e -b 40-41",
    ]
    shown = [(one["id"], one["nodes"], one["state"], one["zone"]) for one in listed["blocks"] if one["id"] >= 32]
    assert shown == [
        (32, [1], "offline", None),
        (33, [1], "offline", None),
        (34, [1], "online", "Movable"),
        (35, [1], "offline", None),
    ]
