"""A machine of plain files that takes writes and outlives whoever makes them; and a program that is killed in the middle.

``python -m host.filetree ROOT STATE HOOKS GOAL STEP`` takes memory offline and kills itself at that step: a step is each moment
before and after a note in the journal, and before and after a write to a block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memhp import DirTree
from memhp.errors import ChangeFailed
from memhp.host import Host
from memhp.host.hooks import hooks_in
from memhp.host.journal import Journal, locked


class FileTree:
    """Reads as a copy does; a write to ``state`` changes the block's two files, or is refused if a file ``stays`` names it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        copy = DirTree(root)
        self.read, self.list, self.exists, self.readlink = copy.read, copy.list, copy.exists, copy.readlink
        self.read_bytes, self.open_binary = copy.read_bytes, copy.open_binary

    def write(self, path: str, data: str | bytes) -> int:
        word = data if isinstance(data, str) else data.decode()
        place = (self._root / path.lstrip("/")).parent
        stays = self._root / "stays"
        if word == "offline" and stays.exists() and place.name in stays.read_text().split():
            raise OSError(errno.EBUSY, "a page can't leave", path)
        zone = {"online_movable": "Movable", "online_kernel": "Normal", "online": "Normal"}.get(word)
        (place / "valid_zones").write_text(f"{zone or 'Normal Movable'}\n")
        (place / "state").write_text("online\n" if zone else "offline\n")
        return len(word)


def dying(step: int) -> Callable[[Any], Any]:
    """Make a wrapper of functions that kills this process at the given step."""
    left = [step]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(function: Any) -> Any:
        def wrapped(*given: Any, **named: Any) -> Any:
            tick()
            result = function(*given, **named)
            tick()
            return result

        return wrapped

    return wrap


def main(root: str, state: str, hooks: str, goal: str, step: str) -> None:
    wrap = dying(int(step))
    tree = FileTree(Path(root))
    tree.write = wrap(tree.write)  # type: ignore[method-assign]
    Journal.note = wrap(Journal.note)  # type: ignore[method-assign]
    Journal.end = wrap(Journal.end)  # type: ignore[method-assign]
    host = Host(tree)
    with locked(Path(state)), contextlib.suppress(ChangeFailed):
        host.apply(host.plan("offline", goal, keep_free=0), hooks=hooks_in(Path(hooks)), journal=Path(state))


if __name__ == "__main__":
    main(*sys.argv[1:])
