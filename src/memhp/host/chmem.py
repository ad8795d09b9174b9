"""What ``chmem`` does to memory blocks, in its order and its words (util-linux 2.42), through any tree.

It is a loop: block after block is written to until there is enough, a block that fails is left as it is, and nothing is
undone. For changes that are planned and undone see ``memhp online`` and ``memhp offline``.

On s390 a firmware's list (``/sys/firmware/memory``) says which blocks there could be; a block is configured before it
comes online and deconfigured after it went offline.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memhp.abi.paths import FIRMWARE_MEMORY, MEMORY
from memhp.abi.tree import Tree
from memhp.errors import HostError
from memhp.host.scan import human

__all__ = ["ZONES", "Chmem", "Request"]

ZONES = ("DMA", "DMA32", "Normal", "Highmem", "Movable", "Device")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        command: enable, disable, configure or deconfigure.
        count: so many blocks, wherever they are; or None for those from ``first`` to ``last``.
        zone: the only zone to take memory for or from, by its name in ``ZONES``.
        memmap_on_memory: 0 or 1 to set it before a block is configured, else None.
    """

    command: str
    count: int | None = None
    first: int = 0
    last: int = 0
    zone: str | None = None
    memmap_on_memory: int | None = None
    verbose: bool = False


class Chmem:
    """A machine that ``chmem`` works on.

    Args:
        tree: the machine; it must be writable.
        say: what to do with a line of output.
        warn: what to do with a line of complaint.

    Raises:
        HostError: it has no memory blocks, or they can't be listed.
    """

    def __init__(self, tree: Tree, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self.tree = tree
        self.say = say
        self.warn = warn
        self.changed = 0
        """How many writes succeeded."""
        self.has_firmware = tree.exists(f"{FIRMWARE_MEMORY}/memory0")
        self.numbers = self._numbers(MEMORY)
        try:
            self.block_size = int(tree.read(f"{MEMORY}/block_size_bytes"), 16)
        except (OSError, ValueError) as error:
            raise HostError(f"{MEMORY}/block_size_bytes", "not the size of a block") from error
        if self.block_size <= 0:
            raise HostError(f"{MEMORY}/block_size_bytes", "not the size of a block")
        if self.has_firmware:
            self.numbers = self._numbers(FIRMWARE_MEMORY)
        self.has_zones = tree.exists(f"{MEMORY}/memory0/valid_zones")

    def _numbers(self, directory: str) -> list[int]:
        try:
            names = self.tree.list(directory)
        except OSError as error:
            raise HostError(directory, error.strerror or "", errno=error.errno or 0) from error
        numbers = [name[6:] for name in names if name[:6] == "memory" and name[6:].isascii() and name[6:].isdigit()]
        if not numbers:
            raise HostError(directory, "no memory blocks")
        return sorted(map(int, numbers))

    def run(self, request: Request) -> int:
        """Do it; gives the exit code: 0 all of it, 64 a part, 1 nothing."""
        if request.command in {"enable", "disable"}:
            turn = _OnOff(self, request)
            done = turn.by_size(request.count) if request.count is not None else turn.by_range()
        elif not self.has_firmware:
            self.say(f"Cannot {request.command}. Use {'-e' if request.command == 'configure' else '-d'} instead.")
            return 1
        else:
            done = _Configuration(self, request).run()
        wanted = request.count if request.count is not None else request.last - request.first + 1
        return 0 if done == wanted else 64 if done else 1

    def name(self, number: int) -> str:
        """Give the block's name in messages."""
        start = number * self.block_size
        return f"Memory Block {number} (0x{start:016x}-0x{start + self.block_size - 1:016x})"

    def read(self, path: str) -> str:
        """Give a file's text without its newline, '' if it can't be read."""
        try:
            return self.tree.read(path).removesuffix("\n")
        except OSError:
            return ""

    def number_in(self, path: str) -> int | None:
        """Give the number in a file, None if there is none."""
        try:
            return int(self.read(path))
        except ValueError:
            return None

    def write(self, path: str, text: str) -> OSError | None:
        """Write; gives the error, if there is one."""
        try:
            self.tree.write(path, text)
        except OSError as error:
            return error
        self.changed += 1
        return None

    def could_only(self, verb: str, done: int) -> str:
        """Say how much it was."""
        return f"Could only {verb} {human(done * self.block_size)} of memory"

    def in_range(self, request: Request) -> Iterator[int]:
        """Give the blocks of a range that exist."""
        return (number for number in self.numbers if request.first <= number <= request.last)


class _Configuration:
    # One block, or as many as are asked for, of the firmware's list.

    def __init__(self, machine: Chmem, request: Request) -> None:
        self.machine = machine
        self.request = request
        self.configure = request.command in {"enable", "configure"}
        self.verb = "configure" if self.configure else "deconfigure"

    def run(self) -> int:
        machine, request = self.machine, self.request
        if request.count is None:
            return sum(self.change(number) for number in machine.in_range(request))
        done = 0
        for number in machine.numbers if self.configure else reversed(machine.numbers):
            if done == request.count:
                break
            done += self.change(number)
        if done < request.count:
            machine.say(machine.could_only(self.verb, done))
        return done

    def change(self, number: int) -> bool:
        """Change one block; says whether it counts as done. For a size, a block that needs nothing doesn't."""
        machine = self.machine
        directory = f"{FIRMWARE_MEMORY}/memory{number}"
        configured, memmap = machine.number_in(f"{directory}/config"), machine.number_in(f"{directory}/memmap_on_memory")
        if configured is None or memmap is None:
            return False
        verdict = self._when_configured(number, memmap) if configured else self._when_not_configured(number)
        return self._write(number) if verdict is None else verdict

    def _when_configured(self, number: int, memmap: int) -> bool | None:
        # None: it has to be written to.
        machine, request = self.machine, self.request
        by_size = request.count is not None
        if self.configure:
            if request.memmap_on_memory not in {None, memmap}:
                if not by_size or request.verbose:
                    machine.say(f"{machine.name(number)} must be deconfigured before using -m option")
                return False
            if not by_size and request.verbose:
                machine.say(f"{machine.name(number)} already configured")
            return not by_size
        if machine.read(f"{MEMORY}/memory{number}/state").startswith("online"):
            if not by_size or request.verbose:
                machine.say(f"{machine.name(number)} must be offline before deconfiguration")
            return False
        return None

    def _when_not_configured(self, number: int) -> bool | None:
        machine, request = self.machine, self.request
        if request.memmap_on_memory is not None:
            error = machine.write(f"{FIRMWARE_MEMORY}/memory{number}/memmap_on_memory", str(request.memmap_on_memory))
            if error is not None:
                machine.warn(f"{machine.name(number)} memmap-on-memory failed: {_reason(error)}")
                return False
            return None
        if self.configure:
            return None
        if request.count is None and request.verbose:
            machine.say(f"{machine.name(number)} already deconfigured")
        return request.count is None

    def _write(self, number: int) -> bool:
        machine, request = self.machine, self.request
        error = machine.write(f"{FIRMWARE_MEMORY}/memory{number}/config", "1" if self.configure else "0")
        if error is None:
            if request.verbose:
                machine.say(f"{machine.name(number)} {self.verb}d")
        elif request.count is None:
            machine.warn(f"{machine.name(number)} {self.verb} failed: {_reason(error)}")
        elif request.verbose:
            machine.say(f"{machine.name(number)} {self.verb} failed")
        return error is None


class _OnOff:
    # Online or offline: as many blocks as are asked for, from the low end up or from the high end down; or those of a range.

    def __init__(self, machine: Chmem, request: Request) -> None:
        self.machine = machine
        self.request = request
        self.enable = request.command == "enable"
        self.verb = request.command
        self.firmware = _Configuration(machine, request) if machine.has_firmware else None

    def by_size(self, count: int) -> int:
        machine = self.machine
        done = 0
        for number in machine.numbers if self.enable else reversed(machine.numbers):
            if done == count:
                break
            done += self._one_of_many(number)
        if done < count:
            machine.warn(machine.could_only(self.verb, done))
        return done

    def _one_of_many(self, number: int) -> bool:
        machine = self.machine
        if self._is_unconfigured(number):
            if self.firmware is None or not self.firmware.change(number):
                return False
        elif self._is_so(number) or (not self.enable and not machine.read(f"{MEMORY}/memory{number}/state")):
            return False
        word = self._word(number)
        if word is None:
            return False
        error = machine.write(f"{MEMORY}/memory{number}/state", word)
        if self.request.verbose:
            machine.say(f"{machine.name(number)} {self.verb}{'d' if error is None else ' failed'}")
        return error is None and self._afterwards(number)

    def by_range(self) -> int:
        return sum(self._one_of_range(number) for number in self.machine.in_range(self.request))

    def _one_of_range(self, number: int) -> bool:
        machine = self.machine
        if self._is_unconfigured(number) and (self.firmware is None or not self.firmware.change(number)):
            return False
        if self._is_so(number) or (not self.enable and not machine.read(f"{MEMORY}/memory{number}/state")):
            if self.request.verbose:
                machine.say(f"{machine.name(number)} already {self.verb}d")
            return True
        word = self._word(number)
        if word is None:
            machine.warn(f"{machine.name(number)} {self.verb} failed: Zone mismatch")
            return False
        error = machine.write(f"{MEMORY}/memory{number}/state", word)
        if error is not None:
            machine.warn(f"{machine.name(number)} {self.verb} failed: {_reason(error)}")
            return False
        if self.request.verbose:
            machine.say(f"{machine.name(number)} {self.verb}d")
        return self._afterwards(number)

    def _is_unconfigured(self, number: int) -> bool:
        if not self.enable or self.firmware is None:
            return False
        return not self.machine.number_in(f"{FIRMWARE_MEMORY}/memory{number}/config")

    def _is_so(self, number: int) -> bool:
        # chmem compares six letters, so going-offline is neither.
        return self.machine.read(f"{MEMORY}/memory{number}/state")[:6] == ("online" if self.enable else "offlin")

    def _word(self, number: int) -> str | None:
        # What to write, None if the block's zones aren't those that are wanted.
        zone = self.request.zone
        zones = self.machine.read(f"{MEMORY}/memory{number}/valid_zones").lower() if self.machine.has_zones else ""
        if not self.enable:
            return None if zone is not None and not zones.startswith(zone.lower()) else "offline"
        if zone is None:
            return "online_movable" if "movable" in zones else "online"
        if zone.lower() not in zones:
            return None
        return "online_movable" if zone == "Movable" else "online_kernel"

    def _afterwards(self, number: int) -> bool:
        return self.enable or self.firmware is None or self.firmware.change(number)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
