"""``memhp study``: what share of a machine's blocks can go offline under workloads, over seeds and parameters."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from memhp.cli.run import BAD_INPUT, HELD, INTERRUPTED, without_log
from memhp.cli.text import guarded
from memhp.errors import InvalidInput
from memhp.scenario import Scenario
from memhp.study.output import FORMATS, Group, check_formats, groups_of, write_results
from memhp.study.plan import Study, load_study
from memhp.study.run import run_study

__all__ = ["configure", "main"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Fill modelled machines with workloads and take their memory blocks offline, over seeds and parameters: what share "
        "can go, what moves, what stops it. A scenario's steps can come first. docs/study.md says how to write a study."
    )
    parser.add_argument("file", metavar="FILE", help="the study, or a scenario to play with each seed")
    parser.add_argument("--seeds", type=int, metavar="N", help="the seeds 1 to N; default: those of the study, or 1")
    parser.add_argument("--out", metavar="DIR", help="where results go; default: study-NAME, beside where you are")
    parser.add_argument(
        "--format", default="csv", metavar="LIST", help=f"which results to write, of {','.join(FORMATS)}; default: csv"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: one a CPU")
    parser.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="run on this Dask scheduler instead, as tcp://host:8786"
    )


def main(options: argparse.Namespace) -> int:
    """Run the study; gives the exit code."""
    try:
        if options.seeds is not None and options.seeds < 1:
            raise InvalidInput(options.seeds, "--seeds", "a number of seeds, at least 1")
        study = load_study(options.file, seeds=options.seeds or 0)
        formats = tuple(dict.fromkeys(options.format.split(",")))
        check_formats(formats)
        directory = Path(options.out or f"study-{Path(options.file).stem}")
        if directory.exists() and not directory.is_dir():
            raise InvalidInput(str(directory), "--out", "a directory, or the name of a new one")
        with without_log(), _progress(study.title) as done:
            rows = run_study(study, jobs=options.jobs, scheduler=options.scheduler, done=done)
        files = write_results(study, rows, directory, formats)
    except InvalidInput as error:
        print(f"memhp: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"memhp: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("memhp: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return guarded(lambda: _print(study, groups_of(study, rows), len(rows), files))


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    # Only for somebody who looks; and without rich it works as well.
    if not sys.stderr.isatty():
        yield lambda _finished, _total: None
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra, and slow to import
        from rich.progress import Progress  # noqa: PLC0415
    except ImportError:
        yield lambda finished, total: print(f"\r{finished} of {total} runs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda finished, total: progress.update(task, completed=finished, total=total)


def _print(study: Study, groups: list[Group], runs: int, files: list[Path]) -> int:
    print(f"{study.title}\n{runs} runs, {len(study.seeds)} for each line\n")
    width = max(len(group.label) for group in groups)
    print(f"{'':<{width}}  blocks  isolable  gone offline (range)   moved  stopped by")
    for group in groups:
        low, high = group.range("share")
        moved = group.mean("moved_pages") / 2**18
        stopped = ", ".join(f"{reason} {share:.0%}" for reason, share in sorted(group.stopped.items(), key=lambda one: -one[1]))
        print(
            f"{group.label:<{width}}  {group.mean('blocks'):6.0f}  {group.mean('isolable') / group.mean('blocks'):8.0%}  "
            f"{group.mean('share'):4.0%} ({low:.0%} to {high:.0%}){'':<{5 - len(f'{low:.0%}{high:.0%}') + 4}}"
            f"{moved:5.1f}G  {stopped or 'nothing'}"
        )
    print()
    if study.scenario is not None:
        _print_steps(study.scenario, groups)
    for path in files:
        print(f"wrote {path}")
    return HELD


def _print_steps(scenario: Scenario, groups: list[Group]) -> None:
    # Where every step did as it was told and moved nothing there is nothing to say.
    for group in groups:
        ended = [(step, group.step(step.number)) for step in scenario.steps if step.verb != "note"]
        lines = [f"  {step.number}. {step.shown}: {text}" for step, text in ended if text != "ok"]
        unplayed = next((row["not played"] for row in group.rows if row["not played"]), "")
        failed = sum(row["failed expectations"] > 0 for row in group.rows)
        lines += [f"  expectations did not hold in {failed} of {len(group.rows)} runs"] if failed else []
        lines += [f"  ended early: {unplayed}"] if unplayed else []
        if lines:
            print("\n".join([group.label, *lines, ""]))
