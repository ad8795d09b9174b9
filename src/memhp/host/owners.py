"""Who holds the pages of a block: memory cgroups (/proc/kpagecgroup) and, where the kernel keeps note, who allocated a page."""

from __future__ import annotations

import contextlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memhp.abi.pageflags import KPAGECGROUP, WORD
from memhp.abi.tree import DirTree, Tree, open_binary
from memhp.host.frames import Fate, FrameReader, kind_of

if TYPE_CHECKING:
    from memhp.host.survey import Survey

__all__ = ["owners_of", "parse_page_owner"]

PAGE_OWNER = "/sys/kernel/debug/page_owner"
_CGROUPS = "sys/fs/cgroup"
_ALLOCATED = re.compile(r"Page allocated via order (\d+),.*?pid (\d+), tgid (\d+) \(([^)]*)\)")
_PFN = re.compile(r"PFN (?:0x)?([0-9a-fA-F]+)")


def owners_of(survey: Survey, block_id: int, first_stop: int | None = None) -> tuple[tuple[str, int], ...]:
    """Give who holds pages of a block that would move, and who allocated the page that stops it; most pages first.

    Pages of a cgroup come as ``cgroup /system.slice/db.service``, ``cgroup 1234`` if it is gone; a process as
    ``process 812 (postgres)``. What the kernel doesn't tell is left out, so the result may be empty.
    """
    block = survey.by_id[block_id]
    found = dict(_by_cgroup(survey.tree, survey.first_pfn(block), survey.block_pages))
    if first_stop is not None and (who := _allocator(survey.tree, first_stop)):
        found[who] = found.get(who, 0) + 1
    return tuple(sorted(found.items(), key=lambda one: (-one[1], one[0])))


def _by_cgroup(tree: Tree, start_pfn: int, nr_pages: int) -> Iterator[tuple[str, int]]:
    try:
        inodes = _words(tree, start_pfn, nr_pages)
        with FrameReader(tree) as reader:
            words = reader.words(start_pfn, nr_pages)
            held = Counter(
                inode for inode, word in zip(inodes, words, strict=False) if inode and kind_of(word).fate is Fate.MOVES
            )
    except OSError:
        return
    names = _cgroup_names(tree, held)
    yield from ((f"cgroup {names.get(inode, inode)}", number) for inode, number in held.items())


def _words(tree: Tree, start_pfn: int, nr_pages: int) -> array[int]:
    words = array("Q", bytes(nr_pages * WORD))
    with contextlib.closing(open_binary(tree, KPAGECGROUP)) as file, memoryview(words) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view) and (got := file.readinto(view[done:], start_pfn * WORD + done)) > 0:
            done += got
    return words


def _cgroup_names(tree: Tree, inodes: Iterable[int]) -> dict[int, str]:
    # A cgroup's id is the inode number of its directory.
    if not isinstance(tree, DirTree):
        return {}
    wanted = set(inodes)
    root = tree.root / _CGROUPS
    found = {}
    for path, _, _ in os.walk(root):
        with contextlib.suppress(OSError):
            inode = os.stat(path).st_ino
            if inode in wanted:
                found[inode] = "/" + str(Path(path).relative_to(root)).removeprefix(".")
        if len(found) == len(wanted):
            break
    return found


def _allocator(tree: Tree, pfn: int) -> str:
    # The file begins at the pfn to which one seeks (mm/page_owner.c, lseek_page_owner(), from 6.2 on); before, it is too long
    # to be read through for one page.
    buffer = bytearray(4096)
    try:
        with contextlib.closing(open_binary(tree, PAGE_OWNER)) as file:
            number = file.readinto(memoryview(buffer), pfn)
    except OSError:
        return ""
    return parse_page_owner(buffer[:number].decode(errors="replace"), pfn)


def parse_page_owner(text: str, pfn: int) -> str:
    """Give who allocated the page, from records of page_owner: ``process 1 (swapper/0)``; '' if it isn't in them."""
    for record in text.split("\n\n"):
        who, where = _ALLOCATED.search(record), _PFN.search(record)
        if who and where:
            first = int(where[1], 16 if "0x" in where[0] else 10)
            if first <= pfn < first + (1 << int(who[1])):
                return f"process {who[3]} ({who[4]})"
    return ""
