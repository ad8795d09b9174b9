"""The options of the commands with which people work in guests, and change them from outside."""

from __future__ import annotations

import argparse

__all__ = ["KERNEL", "add_guest_commands"]

KERNEL = "6.1, 6.12, or VMLINUZ[:MODULES_DIR], a path with a slash"


def add_guest_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``boot``, ``plug``, ``unplug``, ``resize``, ``ps``, ``stop`` and ``selftest``."""
    _add_boot(commands)
    plug = commands.add_parser("plug", help="plug a DIMM into a running guest", description="Plug a DIMM into a running guest.")
    plug.add_argument("size", metavar="SIZE", help="in whole memory blocks of 128 MiB")
    plug.add_argument("--node", type=int, default=0, metavar="N", help="whose memory it is; default: 0")
    plug.add_argument("--name", default="", metavar="NAME", help="of the DIMM; default: dimm1, dimm2, …")
    unplug = commands.add_parser(
        "unplug",
        help="pull a DIMM out of a running guest",
        description="Pull a DIMM out of a running guest. Its kernel takes the memory offline by itself, or refuses.",
    )
    unplug.add_argument("dimm", metavar="NAME", help="of the DIMM, as memhp lab ps shows it")
    resize = commands.add_parser(
        "resize",
        help="ask a virtio-mem device of a running guest for another size",
        description="Ask a virtio-mem device of a running guest for another size, and wait until the guest's driver is there.",
    )
    resize.add_argument("size", metavar="SIZE", help="how much memory the device shall have")
    resize.add_argument("--device", default="", metavar="NAME", help="which; default: the only one")
    stop = commands.add_parser("stop", help="end a running guest")
    stop.add_argument("guest", nargs="?", default="", metavar="NAME", help="which guest; default: the only one that runs")
    for parser in (plug, unplug, resize):
        parser.add_argument("--guest", default="", metavar="NAME", help="which guest; default: the only one that runs")
    for parser in (plug, unplug, resize, stop):
        _add_patience(parser, "how long to wait for the guest; default: 60")
    ps = commands.add_parser("ps", help="list the guests that run, with their DIMMs and virtio-mem devices")
    ps.add_argument("--json", action="store_true", help="print a JSON list")
    selftest = commands.add_parser(
        "selftest",
        help="run the kernel's own selftest of memory hotplug in a guest",
        description="Run the kernel's own selftest of memory hotplug (mem-on-off-test.sh) in a guest. "
        "memhp lab fetch --selftest gets the script.",
    )
    selftest.add_argument("--kernel", required=True, metavar="KERNEL", help=KERNEL)
    _add_patience(selftest, "how long the boot may take; default: 60")


def _add_boot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    boot = commands.add_parser(
        "boot",
        help="boot a kernel and get a shell in it, or run a command",
        description="Boot a real kernel in a QEMU guest, and give a shell in it, with Python and memhp. Ctrl-] ends the guest. "
        "With a command, run it there, and exit with its status.",
    )
    boot.add_argument("--kernel", default="6.12", metavar="KERNEL", help=f"{KERNEL}; default: 6.12")
    boot.add_argument(
        "--node", action="append", metavar="SIZE[,cpus=N]", help="a node of the machine; may be repeated; default: 512MiB and 0"
    )
    boot.add_argument("--slots", type=int, default=16, metavar="N", help="how many DIMMs can be plugged in; default: 16")
    boot.add_argument("--room", default="64GiB", metavar="SIZE", help="how much memory they can have together; default: 64GiB")
    boot.add_argument(
        "--virtio-mem",
        action="append",
        default=[],
        metavar="NODE:SIZE[,requested=SIZE][,block=SIZE]",
        help="a virtio-mem device of that node; may be repeated",
    )
    boot.add_argument(
        "--soft-reserved",
        action="append",
        default=[],
        metavar="AT:SIZE",
        help="memory that the firmware keeps for a purpose (CXL, HBM), as in 4GiB:1GiB; may be repeated",
    )
    boot.add_argument("--append", default="", metavar="PARAMETERS", help="added to the kernel's command line")
    boot.add_argument("--name", default="", metavar="NAME", help="by which other commands find the guest")
    boot.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="LOCAL[:PATH]",
        help="put a file or directory into the guest; default: /root",
    )
    boot.add_argument(
        "--module", action="append", default=[], metavar="NAME", help="have a module of the kernel for modprobe there"
    )
    boot.add_argument("--run", metavar="FILE", help="run this script of yours there, rather than a shell")
    _add_patience(boot, "how long the boot may take; default: 60")
    boot.add_argument("words", nargs="*", metavar="-- COMMAND", help="run this there; one word is a line for the guest's shell")


def _add_patience(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--patience", type=float, default=60.0, metavar="SECONDS", help=text)
