"""``memhp policy``: what happens with memory that is added, and who decides it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from memhp.abi.tree import DirTree
from memhp.cli.text import guarded, refuse_copy, sysroot_of, sysroot_option
from memhp.errors import InvalidInput
from memhp.host.inventory import Host
from memhp.host.policy import SETTINGS, PolicyReport, preview_policy, report, set_policy

__all__ = ["configure", "main"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Show what happens with memory that is added to this machine, and who decides it; or set it, until the next boot. "
        "Several settings are set together or not at all."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    sysroot_option(parser)
    commands = parser.add_subparsers(dest="policy", metavar="show | set NAME=VALUE...")
    commands.add_parser("show", help="show it; also without a command")
    setting = commands.add_parser("set", help="set it", description=f"The names are {', '.join(SETTINGS)}.")
    setting.add_argument("--dry-run", action="store_true", help="only show what it is now, and what it would be")
    setting.add_argument("settings", nargs="+", metavar="NAME=VALUE", help="such as auto_online_blocks=online_movable")


def main(options: argparse.Namespace) -> int:
    """Show or set it; gives the exit code."""
    return guarded(lambda: _main(options), "memhp policy")


def _main(options: argparse.Namespace) -> int:
    root = sysroot_of(options)
    if options.policy == "set":
        wanted = _wanted(options.settings)
        if options.dry_run:
            for name, (was, value) in preview_policy(DirTree(root), wanted).items():
                print(f"{name}: {was} -> {value}")
            return 0
        if options.sysroot is not None:
            return refuse_copy(options.sysroot, "memhp policy", "shows what would be set")
        set_policy(DirTree(root, writable=True), wanted)
        return 0
    found = report(Host(DirTree(root)))
    print(json.dumps({**asdict(found), "policy": found.policy._asdict()}, indent=2) if options.json else _text(found))
    return 0


def _wanted(settings: list[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InvalidInput(setting, "policy", "NAME=VALUE")
        if name in wanted:
            raise InvalidInput(setting, "policy", f"{name} once")
        wanted[name] = value
    return wanted


def _text(found: PolicyReport) -> str:
    policy = found.policy
    values = {
        "auto_online_blocks": policy.auto_online_blocks,
        "online_policy": policy.online_policy,
        "auto_movable_ratio": None if policy.auto_movable_ratio is None else f"{policy.auto_movable_ratio} %",
        "auto_movable_numa_aware": None if policy.auto_movable_numa_aware is None else ("N", "Y")[policy.auto_movable_numa_aware],
        "memmap_on_memory": policy.memmap_on_memory,
    }
    lines = [f"{name:<24} {'this kernel has none' if value is None else value}" for name, value in values.items()]
    lines += ["", f"Decides on new memory: {found.winner}"]
    if found.others:
        lines += ["", "Who else has a say:"]
        lines += [f"  {one.who}: {one.where}\n    {one.what}" for one in found.others]
    if not found.has_udev:
        lines += ["", "udevd does not run here, so no rule of udev has any effect."]
    return "\n".join(lines)
