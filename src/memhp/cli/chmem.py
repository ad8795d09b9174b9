"""``memhp chmem``: the options, messages and exit codes of ``chmem`` of util-linux 2.42."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

from memhp.abi.tree import DirTree, Tree
from memhp.cli.getopt_long import NO, REQUIRED, Refused, Usage, UsageError
from memhp.errors import HostError
from memhp.host.chmem import ZONES, Chmem, Request
from memhp.host.scan import human

__all__ = ["main", "parse_size"]

_COMMANDS = {"e": "enable", "d": "disable", "c": "configure", "g": "deconfigure"}
_LONG = {
    "blocks": (NO, "b"),
    "disable": (NO, "d"),
    "enable": (NO, "e"),
    "help": (NO, "h"),
    "verbose": (NO, "v"),
    "version": (NO, "V"),
    "zone": (REQUIRED, "z"),
    "configure": (NO, "c"),
    "deconfigure": (NO, "g"),
    "memmap-on-memory": (REQUIRED, "m"),
}
_HELP = """
Usage:
 {program} [options] [SIZE|RANGE|BLOCKRANGE]

Set a particular size or range of memory online or offline.

Options:
 -e, --enable       enable memory
 -d, --disable      disable memory
 -b, --blocks       use memory blocks
 -z, --zone <name>  select memory zone (see below)
 -c, --configure    configure range
 -g, --deconfigure  deconfigure range
 -m, --memmap-on-memory select memmap-on-memory
 -v, --verbose      verbose output
 -h, --help         display this help
 -V, --version      display version

Supported zones:
{zones}

Everything is as chmem(8) of util-linux 2.42 has it.
"""
_MOST = 2**64 - 1
_SPACES = " \t\n\v\f\r"


def main(arguments: Sequence[str], program: str = "memhp chmem", tree: Tree | None = None) -> int:
    """Run the command; gives the exit code: 0 everything, 64 a part, 1 nothing."""

    def warn(text: str) -> None:
        print(f"{program}: {text}", file=sys.stderr)

    machine: Chmem | None = None
    try:
        options = _Options(arguments)
        if options.show is not None:
            print(options.show.format(program=program), end="")
            return 0
        machine = Chmem(DirTree("/", writable=True) if tree is None else tree, print, warn)
        return machine.run(options.request(machine))
    except UsageError as error:
        warn(str(error))
        if error.advice:
            print(f"Try '{program} --help' for more information.", file=sys.stderr)
        return 1
    except HostError as error:
        warn(f"Failed to read {error.path}: {os.strerror(error.errno) if error.errno else error}")
        return 1
    except KeyboardInterrupt:
        warn(f"interrupted; {machine.changed if machine else 0} files were written to, and stay as they are now")
        return 130


class _Options:
    def __init__(self, arguments: Sequence[str]) -> None:
        self.command = ""
        self.flags: set[str] = set()
        self.zone: str | None = None
        self.memmap: int | None = None
        self.show: str | None = None
        usage = Usage("bcdeghm:vVz:", _LONG, (("d", "e", "g", "m"),))
        for option, argument in usage.read(arguments):
            if option in "hV":
                self.show = _help() if option == "h" else _version()
                return
            self._set(option, argument)
        if len(usage.rest) != 1 or not self.command:
            raise UsageError("bad usage")
        self.what = usage.rest[0]

    def _set(self, option: str, argument: str) -> None:
        if option in _COMMANDS:
            self.command = _COMMANDS[option]
        elif option == "z":
            self.zone = argument
        elif option == "m":
            self.memmap = _atoi(argument)
        else:
            self.flags.add(option)

    def request(self, machine: Chmem) -> Request:
        """Say what is asked for, in blocks of the machine.

        Raises:
            UsageError: it makes no sense.
        """
        count, first, last = self._blocks(machine.block_size)
        return Request(
            command=self.command,
            count=count,
            first=first,
            last=last,
            zone=self._zone(machine),
            memmap_on_memory=self.memmap if self.memmap in {0, 1} else None,
            verbose="v" in self.flags,
        )

    def _blocks(self, size: int) -> tuple[int | None, int, int]:
        parts = [part for part in self.what.split("-") if part]
        if not parts or len(parts) > 2:
            raise Refused(f"Invalid parameter: {self.what}")
        in_blocks = "b" in self.flags
        if len(parts) == 1 and not in_blocks:
            return _count(parts[0], size), 0, 0
        if len(parts) == 1:
            first = last = _number(parts[0], 10, "Failed to parse block number")
        elif in_blocks:
            first, last = _number(parts[0], 10, "Failed to parse start"), _number(parts[1], 10, "Failed to parse end")
        else:
            first, last = _addresses(parts[0], parts[1], size)
        if first > last:
            raise Refused(f"Invalid range: {self.what}")
        return None, first, last

    def _zone(self, machine: Chmem) -> str | None:
        if self.zone is None:
            return None
        if not machine.has_zones:
            machine.warn("zone ignored, no valid_zones sysfs attribute present")
            return None
        for name in ZONES:
            if name.lower() == self.zone.lower():
                return name
        raise UsageError(f"unknown memory zone: {self.zone}")


def _count(text: str, block_size: int) -> int:
    size = parse_size(text)
    if text[-1].isdigit():
        size = size * (1 << 20) & _MOST
    if size % block_size:
        raise Refused(f"Size must be aligned to memory block size ({human(block_size)})")
    return size // block_size


def _addresses(start: str, end: str, block_size: int) -> tuple[int, int]:
    for name, text in (("start", start), ("end", end)):
        if text[1:2] != "x":
            raise Refused(f"Invalid {name} address format: {text}")
    first = _number(start, 16, "Failed to parse start address")
    last = _number(end, 16, "Failed to parse end address")
    if first % block_size or (last + 1) % block_size:
        size = human(block_size)
        raise Refused(f"Start address and (end address + 1) must be aligned to memory block size ({size})")
    return first // block_size, last // block_size


def _number(text: str, base: int, message: str) -> int:
    digits = r"(?:0[xX])?[0-9a-fA-F]+" if base == 16 else r"[0-9]+"
    if not re.fullmatch(rf"[{_SPACES}]*\+?{digits}", text):
        raise Refused(f"{message}: '{text}'")
    number = int(text, base)
    if number > _MOST:
        raise Refused(f"{message}: '{text}': {os.strerror(errno.ERANGE)}")
    return number


def _atoi(text: str) -> int:
    match = re.match(rf"[{_SPACES}]*([+-]?[0-9]+)", text)
    return int(match[1]) if match else 0


_SIZE = re.compile(
    rf"[{_SPACES}]*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)(?:\.(0*)([0-9]*))?(?:([kmgtpezyKMGTPEZY])(iB|ib|B|b)?)?"
)


def parse_size(text: str) -> int:
    """Read a size as util-linux does: base auto, a letter for powers of 1024, ``MB`` for powers of 1000, a decimal fraction.

    A fraction is added digit by digit, each rounded down, so ``0.125G`` is a byte less than 128 MiB.

    Raises:
        UsageError: not a size, or 2^64 bytes and more.
    """
    match = _SIZE.fullmatch(text)
    if not match or (match[2] is not None and match[4] is None):
        raise Refused(f"Failed to parse size: '{text}': {os.strerror(errno.EINVAL)}")
    whole, zeros, fraction, letter, suffix = match.groups()
    octal = len(whole) > 1 and whole[0] == "0" and whole[1] not in "xX"
    power = "KMGTPEZY".index(letter.upper()) + 1 if letter else 0
    unit = int((1000 if suffix in {"B", "b"} else 1024) ** power)
    size = (int(whole, 8) if octal else int(whole, 0)) * unit
    if size > _MOST or int(whole, 8 if octal else 0) > _MOST:
        raise Refused(f"Failed to parse size: '{text}': {os.strerror(errno.ERANGE)}")
    for place, digit in enumerate(fraction or "", 1 + len(zeros or "")):
        if digit != "0":
            size += unit // int(10**place // int(digit))
    return size


def _help() -> str:
    return _HELP.replace("{zones}", "\n".join(f" {name}" for name in ZONES))


def _version() -> str:
    from memhp import __version__  # noqa: PLC0415 - it costs more than all the rest

    return f"{{program}} from memhp {__version__}, as chmem from util-linux 2.42\n"
