"""The kernel's own selftest of memory hotplug, in a guest: the check that the lab itself is right.

The script is tools/testing/selftests/memory-hotplug/mem-on-off-test.sh of Linux. It is fetched, and is no part of memhp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memhp.lab.boot import Session
from memhp.lab.guest import Hears
from memhp.lab.kernels import Kernel, selftest_script

__all__ = ["Verdict", "run_selftest"]

_SCRIPT = "/root/mem-on-off-test.sh"
_PERCENT = 50
_SIZE = "4GiB"
"""The script goes through the percentage of the blocks, by chance in its last part: so that there are always some."""
_SKIP = 4
"""The status that means "skipped" in the kernel's selftests (tools/testing/selftests/kselftest.h: KSFT_SKIP)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it went."""

    status: int
    output: str
    """What the script wrote."""
    messages: tuple[str, ...]
    """What the kernel said meanwhile."""

    @property
    def injected(self) -> bool:
        """Whether the kernel said that it injected both errors; the script passes also where it could not try."""
        said = "\n".join(self.messages)
        return all(f"Injecting error (-12) to {action}" in said for action in ("MEM_GOING_ONLINE", "MEM_GOING_OFFLINE"))

    @property
    def passed(self) -> bool:
        """Whether everything ran, and held."""
        return self.status == 0 and self.injected

    @property
    def text(self) -> str:
        """Say it in a line in the manner of TAP, as the kernel's selftests do."""
        line = f"{'ok' if self.passed else 'not ok'} 1 memory-hotplug: mem-on-off-test.sh"
        if self.status == _SKIP:
            return f"{line} # it refused to run (exit status {_SKIP})"
        if self.status:
            return f"{line} # exit status {self.status}"
        return line if self.injected else f"{line} # no errors were injected"


def run_selftest(kernel: Kernel, hears: Hears, *, patience: float = 60.0, booted: Callable[[float], object] = float) -> Verdict:
    """Boot the kernel, plug in a DIMM, and run the selftest on half of the blocks.

    Args:
        kernel: which.
        hears: gets what the script writes, as it comes.
        patience: seconds that the boot may take.
        booted: called with the seconds that it took.

    Raises:
        LabMissing: the script was not fetched, or something else is missing.
        GuestFailed: the guest panicked, or ended.
    """
    script = selftest_script()
    parts: list[bytes] = []

    def both(name: str, data: bytes) -> None:
        parts.append(data)
        hears(name, data)

    with Session(kernel, ["1GiB", 0], add=[(script, _SCRIPT)], patience=patience) as guest:
        booted(guest.guest.boot_seconds)
        guest.plug(_SIZE, 1)
        guest.run("dmesg -c")
        status = guest.stream(["/bin/bash", _SCRIPT, "-r", str(_PERCENT)], both)
        messages = guest.run("dmesg").output.splitlines()
    return Verdict(status, b"".join(parts).decode(errors="backslashreplace"), tuple(messages))
