"""``memhp online`` and ``memhp offline``: carry a plan out as one transaction."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from memhp.abi.tree import DirTree
from memhp.cli import plan as plan_command
from memhp.cli.signals import ended_by_signals
from memhp.cli.text import INTERRUPTED, common_options, goal_options, guarded, human, print_json, refuse_copy, sysroot_of
from memhp.errors import ChangeFailed, InvalidInput
from memhp.host.goal import Operation
from memhp.host.inventory import Host
from memhp.host.journal import Entry, default_directory, forget, locked, unfinished
from memhp.host.outcome import Outcome, Result
from memhp.host.plan import Plan
from memhp.units import format_ids

if TYPE_CHECKING:
    import argparse

    from memhp.host.hooks import Hook

__all__ = ["TIMEOUT", "configure", "main", "to_json"]

TIMEOUT = 60.0
"""Seconds for each block if nothing else is said. The kernel by itself would try for ever."""
DEFAULT_HOOKS = "/etc/memhp/hooks.d"
_SCHEMA = 1
_WIDTH = 30
_LONGEST = 1e9
"""Seconds that a wait may have; far more than that is too much for the system's calls."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    operation = parser.prog.rpartition(" ")[2]
    done = "offline: its pages move elsewhere" if operation == "offline" else "online"
    parser.description = (
        f"Bring memory {done}. All of it, or nothing: if the rest fails, what was done is undone, each block to its zone. "
        "docs/change.md says more. Exit codes: 0 done, 1 nothing is changed, 64 partly, 2 bad input."
    )
    parser.set_defaults(operation=operation)
    goal_options(parser, optional=True)
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="for each block; 0: none; default: 60")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--all-or-nothing", action="store_true", help="undo everything if not all of it can be done; the default")
    amount.add_argument("--partial", action="store_true", help="keep what could be done")
    parser.add_argument("--dry-run", action="store_true", help="only show the plan and who would be asked")
    parser.add_argument(
        "--hooks", metavar="DIR", help=f"programs that are asked and told; default: {DEFAULT_HOOKS}, if it is there"
    )
    parser.add_argument("--hook-timeout", type=float, metavar="SECONDS", help="for each program; default: 30")
    parser.add_argument("--recover", action="store_true", help="undo what a transaction left behind that was killed")
    parser.add_argument("--forget", action="store_true", help="leave what such a transaction did as it is")
    common_options(parser)


def main(options: argparse.Namespace) -> int:
    """Change memory; gives the exit code."""
    return guarded(lambda: _main(options))


def _check(options: argparse.Namespace) -> None:
    if options.goal is None and not (options.recover or options.forget):
        raise InvalidInput("", "GOAL", "how much or which memory (or --recover)")
    if options.goal is not None and (options.recover or options.forget):
        raise InvalidInput(options.goal, "GOAL", "nothing beside --recover and --forget")
    if not 0 <= options.timeout < _LONGEST:
        raise InvalidInput(options.timeout, "--timeout", "a number of seconds, 0 for no limit")
    if options.hook_timeout is not None and not 0 < options.hook_timeout < _LONGEST:
        raise InvalidInput(options.hook_timeout, "--hook-timeout", "a number of seconds above 0")


def _main(options: argparse.Namespace) -> int:
    _check(options)
    host = Host(DirTree(sysroot_of(options), writable=options.sysroot is None and not options.dry_run))
    hooks = _hooks(options)
    if options.dry_run:
        return _dry_run(options, host, hooks)
    if options.sysroot is not None:
        return refuse_copy(options.sysroot, "memhp", "shows the plan")
    with locked(default_directory()):
        left = []
        for entry in unfinished(default_directory()):
            if entry.asked or entry.written:
                left.append(entry)
            else:
                forget(entry)  # it had not done anything yet
        if options.recover or options.forget:
            return _settle(options, host, hooks, left)
        for entry in left:
            print(_reported(host, entry), file=sys.stderr)
        return _change(options, host, hooks)


def _hooks(options: argparse.Namespace) -> list[Hook]:
    if not options.hooks and not os.path.isdir(DEFAULT_HOOKS):
        return []
    from pathlib import Path  # noqa: PLC0415 - mostly there are none

    from memhp.host.hooks import DEADLINE, hooks_in  # noqa: PLC0415 - likewise

    return hooks_in(Path(options.hooks or DEFAULT_HOOKS), options.hook_timeout or DEADLINE)


def _dry_run(options: argparse.Namespace, host: Host, hooks: list[Hook]) -> int:
    plan = plan_command.plan_of(options, Operation(options.operation), host)
    if options.json:
        print_json({**plan_command.to_json(plan), "hooks": [str(hook.path) for hook in hooks]})
    else:
        print("\n".join(plan_command.lines_of(plan)))
        print("\n".join(f"Would be asked: {hook.path}" for hook in hooks) or "Nobody would be asked.")
    return 0 if plan.feasible else 1


def _change(options: argparse.Namespace, host: Host, hooks: list[Hook]) -> int:
    plan = plan_command.plan_of(options, Operation(options.operation), host)
    progress = _Progress(plan, shown=sys.stderr.isatty() and not options.json)
    transaction = host.transaction(
        plan,
        timeout=options.timeout or None,
        partial=options.partial,
        hooks=hooks,
        journal=default_directory(),
        progress=progress,
    )
    with ended_by_signals(), contextlib.suppress(ChangeFailed, KeyboardInterrupt):
        transaction.run()
    outcome = transaction.outcome
    if outcome is None:  # it had not begun
        return INTERRUPTED
    progress.clear()
    if options.json:
        print_json(to_json(outcome))
    else:
        _print(outcome)
    return outcome.result.value


class _Progress:
    """A line on a terminal that says how far it is."""

    def __init__(self, plan: Plan, *, shown: bool) -> None:
        self._total = max(1, len(plan.steps))
        self._shown = shown
        self._done = 0
        self._begun = time.monotonic()

    def __call__(self, what: str, details: dict[str, Any]) -> None:
        if not self._shown:
            return
        self._done += what == "done"
        filled = min(_WIDTH, _WIDTH * self._done // self._total)
        bar = "#" * filled + "." * (_WIDTH - filled)
        seconds = time.monotonic() - self._begun
        text = f"[{bar}] {self._done}/{self._total} blocks, {seconds:.0f} s, {what} memory{details['block']}"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print(outcome: Outcome) -> None:
    plan = outcome.plan
    verb = plan.operation.value
    for attempt in outcome.attempts:
        if str(attempt) == outcome.reason:
            continue
        print(f"memhp: {'putting back ' if attempt.undo else ''}{attempt}", file=sys.stderr)
    size = human(len(outcome.changed) * plan.block_size)
    if outcome.result is Result.DONE:
        what = f"memory{format_ids(outcome.changed)}" if outcome.changed else "nothing to do"
        print(f"{size} {verb}: {what} ({outcome.seconds:.1f} s)" if outcome.changed else f"{what}: all of it is {verb} already")
        return
    print(f"memhp: {outcome}", file=sys.stderr)
    if outcome.changed:
        print(f"{size} {verb}: memory{format_ids(outcome.changed)} ({outcome.seconds:.1f} s)")


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Give what ``--json`` prints."""
    return {
        "schema": _SCHEMA,
        "operation": outcome.plan.operation.value,
        "goal": outcome.plan.goal.text,
        "result": outcome.result.name.lower(),
        "exit_code": outcome.result.value,
        "reason": outcome.reason,
        "changed": list(outcome.changed),
        "undone": list(outcome.undone),
        "stuck": [{"block": one.block, "before": one.before, "now": one.now, "why": one.why} for one in outcome.stuck],
        "others": list(outcome.others),
        "attempts": [
            {
                "block": one.block,
                "word": one.word,
                "errno": one.errno,
                "text": one.text,
                "seconds": round(one.seconds, 3),
                "evidence": list(one.evidence),
                "undo": one.undo,
                "asked": one.asked,
            }
            for one in outcome.attempts
        ],
        "vain": outcome.vain,
        "seconds": round(outcome.seconds, 3),
    }


# -- what transactions left behind that were killed


def _reported(host: Host, entry: Entry) -> str:
    from memhp.host.recover import account  # noqa: PLC0415 - only where there is something to account for

    lines = account(host, entry)
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.started))
    head = f"memhp: a transaction ({entry.operation} {entry.goal}, of {begun}, process {entry.pid}) was killed before its end."
    body = [f"  {line}" for line in lines] or ["  It had changed nothing."]
    return "\n".join([head, *body, "  memhp offline --recover undoes it, --forget leaves it as it is."])


def _settle(options: argparse.Namespace, host: Host, hooks: list[Hook], left: list[Entry]) -> int:
    from memhp.host.recover import recover  # noqa: PLC0415 - as above

    if not left:
        print("no transaction was left behind")
    code = 0
    for entry in left:
        print(_reported(host, entry).rpartition("\n")[0].removeprefix("memhp: "))
        if options.recover:
            stuck = recover(host, entry, hooks=hooks, timeout=options.timeout or None)
            print("\n".join(f"  still: {one}" for one in stuck) or "  Everything is as it was before it.")
            code = code or (Result.PARTLY.value if stuck else 0)
            if stuck:
                continue
        forget(entry)
    return code
