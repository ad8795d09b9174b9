"""Real kernels judge: what explain says of every block, and what a transaction does with pages in the way."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memhp.lab import kernels

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(400),
    pytest.mark.parametrize("series", tuple(kernels.SERIES)),
]

HERE = Path(__file__).parent / "guest"
SHAPE = ["--node", "2GiB", "--node", "1GiB"]
MOVABLE = dict.fromkeys((f"memory{number}" for number in range(17, 23)), "Movable")


@functools.cache
def run(series: str, script: str, parameters: str) -> dict[str, Any]:
    """Run a script in a guest; the last line that it prints is JSON."""
    command = [sys.executable, "-m", "memhp.cli", "lab", "boot", "--kernel", series, *SHAPE, "--append", parameters]
    command += ["--add", str(HERE / script), "--", f"python3 /root/{script}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    assert lines, done.stderr
    assert lines[-1].startswith("{"), done.stdout
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def judgement(series: str) -> dict[str, Any]:
    return run(series, "judge.py", "memhp_default_state=offline movablecore=512M")


def judged(series: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = judgement(series)["blocks"]
    return blocks


def pinned(series: str) -> int:
    """The block that has the pinned page."""
    return int(judgement(series)["pinned"])


@pytest.mark.fact("3.13", "3.14", "7.1")
def test_what_is_said_not_to_go_does_not_go(series: str) -> None:
    """With the errno that explain foretells."""
    for block in judged(series):
        if block["verdict"] == "no":
            assert block["came"] in {"EBUSY", "EINVAL"}, block
            assert (block["came"] == "EINVAL") == ("several zones" in block["said"] or "holes" in block["said"]), block


def test_what_is_said_to_go_goes(series: str) -> None:
    """But for pins, which nobody can see: of those that cost something, the one with the page in the pipe."""
    blocks = judged(series)
    assert [block for block in blocks if block["verdict"] == "yes" and block["came"]] == []
    costs = {block["id"]: block["came"] for block in blocks if block["verdict"] == "costs"}
    assert set(costs.values()) <= {"", "EINTR"}
    assert "" in costs.values()
    kept = [number for number, came in costs.items() if came == "EINTR"]
    assert len(kept) <= 1
    assert set(kept) <= {pinned(series)}


def test_the_block_with_a_pinned_page_does_not_go(series: str) -> None:
    """Whatever was said of it."""
    found = next(block for block in judged(series) if block["id"] == pinned(series))
    assert found["came"] != ""


def test_there_was_something_to_judge(series: str) -> None:
    """All kinds of pages were there: else the two tests above show nothing."""
    blocks = judged(series)
    assert {block["verdict"] for block in blocks} >= {"yes", "costs", "no"}
    kinds = {kind for block in blocks for kind in block["pages"]}
    assert kinds >= {"free", "anonymous", "hugetlb", "slab", "page table", "reserved", "kernel compound", "no flags"}


def done(series: str) -> dict[str, Any]:
    return run(series, "transactions.py", "memhp_default_state=offline")


def without_time(lines: list[str]) -> list[str]:
    return [re.sub(r" \(\d+\.\d s\)$", "", line) for line in lines]


def test_an_amount_goes_and_comes_back(series: str) -> None:
    """Two free blocks of the node; the states are the kernel's."""
    results = done(series)
    assert results["begin"] == MOVABLE
    assert (results["amount"]["code"], without_time(results["amount"]["out"])) == (0, ["256 MiB offline: memory21-22"])
    assert results["amount"]["states"] == {**MOVABLE, "memory21": "offline", "memory22": "offline"}
    assert (results["back"]["code"], without_time(results["back"]["out"])) == (0, ["256 MiB online: memory21-22"])
    assert results["back"]["states"] == MOVABLE


@pytest.mark.fact("7.5")
def test_a_pinned_page_ends_in_time_and_is_named(series: str) -> None:
    """The kernel gives up with EINTR; memhp says which page held it up, and puts the other block back."""
    results = done(series)
    found = results["timeout"]
    assert found["code"] == 1
    assert found["states"] == MOVABLE
    assert re.fullmatch(
        rf"memhp: memory{results['pinned']}: EINTR after \d+\.\d s "
        rf"\(page at pfn {results['pfn']:#x} could not move: \d+ references, mapped once\); "
        rf"no block is changed; memory{results['other']} put back",
        found["err"][0],
    )


def test_ctrl_c_in_the_middle_of_an_offline(series: str) -> None:
    """SIGINT: what was done is undone, exit code 1."""
    results = done(series)
    found = results["interrupted"]
    assert (found["code"], found["states"]) == (1, MOVABLE)
    assert found["err"] == [f"memhp: interrupted; no block is changed; memory{results['other']} put back"]


def test_a_transaction_that_is_killed(series: str) -> None:
    """SIGKILL: its write ends with it; the next run accounts for it and works; --recover undoes the rest."""
    results = done(series)
    pinned, other = f"memory{results['pinned']}", f"memory{results['other']}"
    assert results["killed"] == {**MOVABLE, other: "offline"}
    assert results["next run"]["code"] == 0
    assert results["next run"]["err"][1:3] == [
        f"  {other}: was online in Movable, is offline",
        f"  {pinned}: online in Movable, as before",
    ]
    assert results["recovered"]["code"] == 0
    assert results["recovered"]["out"][-1] == "  Everything is as it was before it."
    assert results["end"] == MOVABLE
