"""Which page held a block up: what the kernel logged during an attempt, and what its flags say now."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable

from memhp.abi.tree import DirTree, Tree

__all__ = ["KernelLog", "culprits"]

_KMSG = "/dev/kmsg"
_RECORD = 8192
_FAILED = re.compile(r"(?:migrating|failed to isolate) pfn ([0-9a-f]+)(?: failed ret:(-?\d+))?")
_PAGE = re.compile(r"page:.*?refcount:(-?\d+) mapcount:(-?\d+).*?pfn:(0x[0-9a-f]+)")
_BECAUSE = re.compile(r"page dumped because: (.*)")


class KernelLog:
    """The kernel's log from now on; empty where it can't be read, and on a tree that isn't this machine."""

    def __init__(self, tree: Tree) -> None:
        self._descriptor = -1
        if isinstance(tree, DirTree) and tree.is_this_machine:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._descriptor, 0, os.SEEK_END)

    def new(self) -> list[str]:
        """Give the messages since the last call."""
        lines = []
        while self._descriptor >= 0:
            try:
                record = os.read(self._descriptor, _RECORD)
            except BrokenPipeError:
                continue  # records were overwritten before they were read; go on with the next
            except OSError:
                break
            if not record:
                break
            lines.append(record.decode(errors="replace").partition(";")[2].partition("\n")[0])
        return lines

    def close(self) -> None:
        """Close it; does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def culprits(lines: Iterable[str], first_pfn: int, nr_pages: int) -> list[str]:
    """Tell from the kernel's messages which pages of a range kept it (mm/memory_hotplug.c, mm/debug.c), each once.

    The kernel limits how many it prints, so these are some of them.
    """
    found: dict[int, str] = {}
    pfn = -1
    for line in lines:
        if match := _FAILED.search(line):
            pfn = int(match[1], 16)
            found.setdefault(pfn, f"page at pfn {pfn:#x} could not move")
        elif match := _PAGE.search(line):
            pfn = int(match[3], 16)
            before = found.get(pfn, f"page at pfn {pfn:#x}")
            found[pfn] = before if "references" in before else f"{before}: {match[1]} references, {_times(match[2])}"
        elif (match := _BECAUSE.search(line)) and pfn in found and match[1] == "unmovable page":
            found[pfn] = found[pfn].replace(f"page at pfn {pfn:#x}", f"unmovable page at pfn {pfn:#x}", 1)
    return [text for number, text in found.items() if first_pfn <= number < first_pfn + nr_pages]


def _times(mapcount: str) -> str:
    return {"0": "not mapped", "1": "mapped once"}.get(mapcount, f"mapped {mapcount} times")
