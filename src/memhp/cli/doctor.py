"""``memhp doctor``: what this machine's kernel can do, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from memhp.abi.tree import DirTree
from memhp.cli.text import guarded, sysroot_of, sysroot_option
from memhp.host.doctor import MISSING, Finding, examine

__all__ = ["configure", "main"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Look at what memory hotplug needs on this machine, and say of what is missing why, and what to do. Changes nothing. "
        "Exit codes: 0 nothing is missing, 1 something is, 2 bad input."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    sysroot_option(parser)


def main(options: argparse.Namespace) -> int:
    """Examine; gives the exit code."""
    return guarded(lambda: _main(options), "memhp doctor")


def _main(options: argparse.Namespace) -> int:
    findings = examine(DirTree(sysroot_of(options)) if options.sysroot else None)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(options.sysroot or f"Linux {os.uname().release}")
        for finding in findings:
            print(_text(finding))
    return 1 if any(finding.verdict == MISSING for finding in findings) else 0


def _text(finding: Finding) -> str:
    lines = [f"{finding.verdict:<8} {finding.subject}: {finding.found}"]
    if finding.remedy:
        lines.append(f"         {finding.remedy}")
    if finding.needed_for:
        lines.append(f"         needed for: {finding.needed_for}")
    return "\n".join(lines)
