"""``memhp list`` and ``Host().blocks()`` against lsmem: whole processes, on this machine and on trees in tmpfs.

memhp is installed by pip into a venv of its own, as people have it; lsmem is the system's, or MEMHP_LSMEM. Both write to
/dev/null, in turn; a ratio is the median of the pairs' ratios. Trees have two nodes, one hole, and the last eighth offline;
their files are hard links to a few inodes, which reads as fast as files of their own and is made in seconds.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.measure import Figure, Runner, heading, median, race, ratio, ratio_figure, table
from memhp.host import Host

ROOT = Path(__file__).resolve().parent.parent
SIZES = {4096: (0.8, 11), 8192: (0.8, 7), 65536: (0.6, 3)}
"""Blocks: the ratio that is the aim, and how many rounds."""

FORMS = ((), ("-a",), ("--json", "-a"))
MEMORY = "sys/devices/system/memory"
NODE = "sys/devices/system/node"


def run() -> list[Figure]:
    """Race them; without lsmem, say so and measure nothing."""
    peer = shlex.split(os.environ.get("MEMHP_LSMEM") or shutil.which("lsmem") or "")
    if not peer:
        print("no lsmem here, so there is nothing to compare with")
        return []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:  # noqa: S108 - tmpfs
        memhp = _install(Path(directory) / "venv")
        version = subprocess.run([*peer, "--version"], check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
        heading(f"memhp list, {version}")
        figures, rows = [], []
        for name, root, limit, rounds in _trees(Path(directory)):
            for form in FORMS:
                arguments = [*(["--sysroot", str(root)] if root else []), *form]
                results = race(
                    {"lsmem": _process([*peer, *arguments]), "memhp": _process([memhp, "list", *arguments])}, rounds=rounds
                )
                share = ratio(results, "memhp", "lsmem")
                shown = " ".join(form) or "default"
                times = [f"{median(results[who]) * 1e3:.1f}" for who in ("lsmem", "memhp")]
                rows.append((f"{name}, {shown}", *times, f"{share:.2f}"))
                figures.append(ratio_figure(f"list, {name}, {shown}", limit, share))
            if root:
                shutil.rmtree(root)
        table(("blocks, form", "lsmem ms", "memhp ms", "ratio"), rows)
    return [*figures, _in_process(peer)]


def _install(place: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)  # noqa: S603 - ours
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, str(ROOT)], check=True)  # noqa: S603 - ours
    return str(place / "bin" / "memhp")


def _process(command: list[str]) -> Runner:
    def runner(times: int) -> None:
        for _ in range(times):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours

    return runner


def _trees(directory: Path) -> list[tuple[str, Path | None, float, int]]:
    blocks = len(Host().blocks()) if os.path.isdir(f"/{MEMORY}") else 0
    real: list[tuple[str, Path | None, float, int]] = [(f"{blocks}, this machine", None, 2.5, 11)] if blocks else []
    return [*real, *((f"{n}", make_tree(directory / str(n), n), limit, rounds) for n, (limit, rounds) in SIZES.items())]


def make_tree(root: Path, count: int) -> Path:
    """Make the files that either program reads."""
    texts = {"online": "online", "offline": "offline", "1": "1", "Normal": "Normal", "Movable": "Normal Movable"}
    (root / "texts").mkdir(parents=True)
    for name, text in texts.items():
        (root / "texts" / name).write_text(f"{text}\n", encoding="ascii")
    (root / MEMORY).mkdir(parents=True)
    (root / MEMORY / "block_size_bytes").write_text("8000000\n", encoding="ascii")
    for node in (0, 1):
        (root / NODE / f"node{node}").mkdir(parents=True)
    for index in range(count):
        number = index + (8 if index >= count // 4 else 0)
        online, node = index < count * 7 // 8, index * 2 // count
        block = f"{root}/{MEMORY}/memory{number}"
        os.mkdir(block)
        for file, text in (("state", "online" if online else "offline"), ("removable", "1")):
            os.link(f"{root}/texts/{text}", f"{block}/{file}")
        os.link(f"{root}/texts/{'Normal' if online else 'Movable'}", f"{block}/valid_zones")
        os.symlink(f"../../node/node{node}", f"{block}/node{node}")
        os.symlink(f"../../memory/memory{number}", f"{root}/{NODE}/node{node}/memory{number}")
    return root


def _in_process(lsmem: list[str]) -> Figure:
    heading("in a running program")
    host = Host()

    def blocks(times: int) -> None:
        for _ in range(times):
            host.blocks()

    def spawn(times: int) -> None:
        for _ in range(times):
            json.loads(subprocess.run([*lsmem, "--json", "--all"], check=True, capture_output=True).stdout)  # noqa: S603

    results = race({"lsmem --json -a, parsed": spawn, "Host().blocks()": blocks}, rounds=21)
    share = ratio(results, "Host().blocks()", "lsmem --json -a, parsed")
    table(("", "median ms"), [(name, f"{median(values) * 1e3:.2f}") for name, values in results.items()])
    return ratio_figure("Host().blocks(), this machine", 0.3, share)
