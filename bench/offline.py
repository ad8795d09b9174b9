"""Taking 1 GiB offline with half of the blocks unmovable: memhp against chmem, both in a guest with a real kernel.

chmem knows nothing of the blocks, and takes them from the top; a try that fails is one in vain. The guest is emulated, so
starting Python takes seconds there: the change itself is shown, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measure import Figure, duration, heading, median, ratio_figure, table
from memhp.lab import kernels
from memhp.lab.guest import missing_tools

_SERIES = "6.1"
_SPOILT = range(9, 26, 2)
_BLOCK = 128 << 20
_SCRIPT = Path(__file__).parent / "guest" / "against_chmem.py"


def run() -> list[Figure]:
    """Print the figures; none without QEMU and a kernel."""
    heading("1 GiB offline in a guest, half of the blocks unmovable, the highest of the others full")
    if missing_tools() or _SERIES not in {kernel.series for kernel in kernels.installed()}:
        print("left out: needs QEMU, and memhp lab fetch")
        return []
    found = _measured()
    rows = [_row(name, found[name]) for name in ("chmem", "memhp")]
    table(["", "tries in vain", "pages moved", "whole process", "the change itself"], rows)
    one, other = ({key: _median(found[name], key) for key in ("vain", "change", "seconds")} for name in ("memhp", "chmem"))
    return [
        Figure("vain tries, memhp : chmem", "fewer", f"{one['vain']:.0f} : {other['vain']:.0f}", one["vain"] < other["vain"]),
        ratio_figure("change of memhp : chmem", 1.0, one["change"] / other["seconds"]),
        ratio_figure("whole process, memhp : chmem", 1.0, one["seconds"] / other["seconds"]),
    ]


def _measured() -> dict[str, Any]:
    holes = " ".join(f"memmap=64K${number * _BLOCK + _BLOCK // 2:#x}" for number in _SPOILT)
    command = [sys.executable, "-m", "memhp.cli", "lab", "boot", "--kernel", _SERIES, "--node", "1GiB", "--node", "2432MiB"]
    command += ["--append", holes, "--add", str(_SCRIPT), "--", f"python3 /root/{_SCRIPT.name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - memhp itself
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _median(rounds: list[dict[str, Any]], key: str) -> float:
    return median([one[key] or 0.0 for one in rounds])


def _row(name: str, rounds: list[dict[str, Any]]) -> list[str]:
    change = _median(rounds, "change")
    return [
        name,
        f"{_median(rounds, 'vain'):.0f}",
        f"{_median(rounds, 'moved'):.0f}",
        duration(_median(rounds, "seconds")),
        duration(change) if change else "",
    ]
