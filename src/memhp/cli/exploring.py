"""What ``memhp explore`` does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memhp.errors import InvalidInput
from memhp.explore import Finding, Kind, Limits, Result, Verdict, explore, replay
from memhp.explore.api import strategy_named
from memhp.explore.files import scenes
from memhp.explore.search import Build
from memhp.explore.strategies import Strategy
from memhp.explore.strategies.chance import Chance
from memhp.explore.strategies.pct import Pct
from memhp.explore.svg import drawing
from memhp.explore.timeline import timeline

__all__ = ["main"]

HOLDS, FAILS, BAD_INPUT, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130
_EXITS = {Verdict.HOLDS: HOLDS, Verdict.FAILS: FAILS, Verdict.UNDECIDED: UNDECIDED}


def main(options: argparse.Namespace) -> int:
    """Explore, or replay; gives the exit code."""
    try:
        return _main(options)
    except InvalidInput as error:
        print(f"memhp: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("memhp: interrupted; nothing is proved", file=sys.stderr)
        return INTERRUPTED


def _main(options: argparse.Namespace) -> int:
    limits = _limits(options)
    found = scenes(options.file)
    if options.replay is not None:
        return _replay(options, found, limits)
    make = _strategy(options)
    codes = [_explore(options, name, build, make, limits) for name, build in found.items()]
    return next((code for code in (FAILS, UNDECIDED) if code in codes), HOLDS)


def _limits(options: argparse.Namespace) -> Limits:
    for name in ("executions", "seconds", "steps", "patience"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InvalidInput(value, f"--{name}", "more than 0")
    usual = Limits()
    executions = usual.executions if options.executions is None else options.executions
    seconds = usual.seconds if options.seconds is None else options.seconds
    return Limits(executions, seconds, options.steps, options.patience)


def _strategy(options: argparse.Namespace) -> Callable[[], Strategy]:
    draws = options.executions or 1000
    if options.strategy == "random":
        return lambda: Chance(draws, options.seed)
    if options.strategy == "pct":
        return lambda: Pct(draws, options.seed)
    return strategy_named(options.strategy)


def _explore(options: argparse.Namespace, name: str, build: Build, make: Callable[[], Strategy], limits: Limits) -> int:
    result = explore(build, strategy=make, limits=limits, everything=options.all, name=name)
    _show(options, result)
    return _EXITS[result.verdict]


def _replay(options: argparse.Namespace, found: dict[str, Build], limits: Limits) -> int:
    if len(found) > 1:
        wanted = options.replay.split(":")[1] if options.replay.count(":") else ""
        found = {name: build for name, build in found.items() if name == wanted} or found
    name, build = next(iter(found.items()))
    result = replay(build, options.replay, limits=limits, name=name)
    _show(options, result, replayed=True)
    if any(finding.kind is Kind.DIVERGED for finding in result.findings):
        return UNDECIDED
    return FAILS if result.findings else HOLDS


def _show(options: argparse.Namespace, result: Result, *, replayed: bool = False) -> None:
    if options.json:
        print(json.dumps(_as_json(result)))
    else:
        head = result.scope if not replayed else f"replayed {result.steps} steps"
        print(f"{result.name}: {result.verdict.value if not replayed else 'replay'}; {head}")
        if result.shared and not replayed:
            print(f"shared without a lock: {', '.join(result.shared)}")
        for finding in result.findings:
            print(f"\n{timeline(finding)}")
            if finding.schedule and not replayed:
                print(f"\nto play it again: memhp explore {options.file} --replay '{finding.schedule}'")
        for order in result.lock_orders:
            print(f"\nlockdep: {order}")
    if options.svg and result.findings:
        _draw(options.svg, result.findings[0])


def _draw(file: str, finding: Finding) -> None:
    try:
        Path(file).write_text(drawing(finding), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(file, "--svg", f"a file that can be written ({error.strerror})") from error


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "scene": result.name,
        "verdict": result.verdict.value,
        "strategy": result.strategy,
        "promise": result.promise.value,
        "complete": result.complete,
        "limit": result.limit or None,
        "executions": result.executions,
        "redundant": result.redundant,
        "steps": result.steps,
        "deadlocks": result.deadlocks,
        "seconds": round(result.seconds, 3),
        "shared": list(result.shared),
        "findings": [_finding_as_json(finding) for finding in result.findings],
        "lock_orders": [
            {"classes": list(order.classes), "outcome": order.outcome, "schedule": order.schedule or None}
            for order in result.lock_orders
        ],
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "reason": finding.reason,
        "schedule": finding.schedule or None,
        "switches": finding.switches,
        "preemptions": finding.preemptions,
        "steps": [
            {
                "thread": finding.names[line.task],
                "step": line.text,
                "waits": line.waits,
                "at": str(line.place) if line.place is not None else None,
            }
            for line in finding.lines
        ],
    }
