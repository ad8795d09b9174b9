"""Programs that take part in a change: each executable of a directory is a callback on the chain.

They run in the order of their names, at priority 0, so callbacks with a higher priority come before and with a lower one
after them. GOING_*: exit status 0 agrees, anything else refuses. A program that doesn't end in time, or is killed by a signal,
refuses, and is killed with everything that it started. What it prints to standard error is the reason.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memhp.errors import HookFailed, HostError
from memhp.events import MemoryAction, MemoryNotify
from memhp.host.block import Block
from memhp.notifier import NOTIFY_OK, NotifierBlock, NotifierChain, NotifyResult

__all__ = ["DEADLINE", "Hook", "hooks_in", "registered"]

DEADLINE = 30.0
"""Seconds that a program has, if nothing else is said."""

_PHASES = {"GOING": "going", "CANCEL": "cancel"}
_SAID = 2000


class Hook:
    """One program as a callback.

    Attributes:
        path: the executable.
        deadline: seconds that it has.
    """

    def __init__(self, path: Path, deadline: float = DEADLINE) -> None:
        self.path = path
        self.deadline = deadline
        self.context: dict[str, str] = {}

    def __call__(self, block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        """Run the program for one action.

        Raises:
            HookFailed: it refused, hung, crashed or could not be started; for GOING_* the chain takes that as a refusal.
        """
        begun = time.monotonic()
        try:
            process = subprocess.Popen(  # noqa: S603 - the administrator put it there
                [str(self.path)],
                env={**os.environ, **environment(action, arg), **self.context},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise HookFailed(self.path, f"can't be started: {error.strerror}") from error
        said = self._wait(process, begun)
        status = process.returncode
        if status < 0:
            raise HookFailed(self.path, f"was killed by {_signal_name(-status)}", status=status, said=said)
        if status:
            raise HookFailed(self.path, f"answered with exit status {status}", status=status, said=said)
        return NOTIFY_OK

    def about(self, block: Block, node: int, zone: str) -> None:
        """Say which block the next calls are about."""
        self.context = {
            "MEMHP_BLOCK": f"memory{block.id}",
            "MEMHP_NODE": str(node),
            "MEMHP_ZONE": zone,
            "MEMHP_START": f"{block.start:#x}",
            "MEMHP_END": f"{block.end - 1:#x}",
            "MEMHP_SIZE": str(block.size),
        }

    def _wait(self, process: subprocess.Popen[bytes], begun: float) -> str:
        try:
            _, said = process.communicate(timeout=self.deadline)
        except subprocess.TimeoutExpired:
            _kill(process)
            seconds = time.monotonic() - begun
            raise HookFailed(self.path, f"did not end within {self.deadline:g} s and was killed", seconds=seconds) from None
        except BaseException:
            _kill(process)
            raise
        return said.decode(errors="replace").strip()[-_SAID:]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def environment(action: MemoryAction, arg: MemoryNotify) -> dict[str, str]:
    """Give the variables that tell a program what happens."""
    phase, _, way = action.name.removeprefix("MEM_").rpartition("_")
    return {
        "MEMHP_ACTION": action.name,
        "MEMHP_PHASE": _PHASES.get(phase, "done"),
        "MEMHP_OPERATION": way.lower(),
        "MEMHP_START_PFN": str(int(arg.start_pfn)),
        "MEMHP_NR_PAGES": str(arg.nr_pages),
    }


@contextlib.contextmanager
def registered(chain: NotifierChain, hooks: Sequence[Hook]) -> Iterator[None]:
    """Have the programs on a chain, in their order, behind what has at least priority 0 there."""
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.callback(chain.register(NotifierBlock(hook, 0, hook.path.name)).unregister)
        yield


def hooks_in(directory: Path, deadline: float = DEADLINE) -> list[Hook]:
    """Find the programs of a directory, in the order of their names; hidden files and backups (``~``) are left out.

    Raises:
        HostError: the directory can't be read; or a program in it could be changed by others than its owner and root, and would
            run with your rights.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if not path.name.startswith(".") and not path.name.endswith("~"))
    except OSError as error:
        raise HostError(str(directory), f"can't be read: {error.strerror}", errno=error.errno or 0) from error
    found = []
    for path in paths:
        what = path.stat()
        if not stat.S_ISREG(what.st_mode) or not what.st_mode & 0o111:
            continue
        for one in (path, directory):
            given = one.stat()
            if given.st_mode & 0o022 or given.st_uid not in {0, os.geteuid()}:
                raise HostError(str(one), "others could change it, so it is not run", hint="chmod go-w, and chown it to root")
        found.append(Hook(path, deadline))
    return found
