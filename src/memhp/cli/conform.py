"""``memhp conform``: the model beside real kernels."""

from __future__ import annotations

import argparse
import difflib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import memhp.conform
from memhp.cli.lab import NO_LAB, answered
from memhp.cli.run import FAILED, HELD, without_log
from memhp.conform.compare import Difference, differences
from memhp.conform.generate import SHAPES, Generated, generate, write_scenario
from memhp.conform.play import RealKernel, play_model
from memhp.conform.recording import Recording, fingerprint
from memhp.conform.shrink import shrink
from memhp.errors import InvalidInput, ScenarioError
from memhp.lab import kernels
from memhp.lab.plan import make_plan
from memhp.lab.probes import PROBES
from memhp.scenario import load

__all__ = ["LIBRARY", "configure", "main"]

LIBRARY = Path(memhp.conform.__file__).parent / "library"
_RECORDED = "recorded"
_STEPS = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Play scenarios on the modelled machine and compare, step by step, with what real kernels do: notifier calls, results, "
        "states, zones, node masks, uevents, MemTotal. Without --live, with what they did when they were recorded, without QEMU."
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="SCENARIO", help="files, or names of memhp's own library; default: all of that"
    )
    parser.add_argument("--kernel", action="append", metavar="SERIES", help="6.1 or 6.12; may be repeated; default: both")
    parser.add_argument(
        "--live", action="store_true", help="play on the real kernels now, record it, and say if they do otherwise than recorded"
    )
    parser.add_argument("--accept", action="store_true", help="with --live: keep the new recording where a kernel did otherwise")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="play N generated scenarios live")
    parser.add_argument("--steps", type=int, default=_STEPS, metavar="N", help=f"steps of each of them; default: {_STEPS}")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the seed of the first of them; default: 1")
    parser.add_argument(
        "--keep", type=Path, default=Path(), metavar="DIRECTORY", help="where one that differs is kept, shortened; default: here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines: one a scenario and kernel, and the sums")
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="how long a boot, or one request, may take; default: 60"
    )


def main(options: argparse.Namespace) -> int:
    """Compare; gives the exit code."""

    def compare() -> int:
        _check(options)
        with without_log():
            return _Run(options).run()

    return answered(compare)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("generate", 0), ("steps", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise InvalidInput(getattr(options, name), f"--{name}", f"a number from {least} on")
    if not options.patience > 0:
        raise InvalidInput(options.patience, "--patience", "a number of seconds above 0")
    for series in options.kernel or ():
        if series not in PROBES:
            raise InvalidInput(series, "--kernel", f"one of {', '.join(PROBES)}")
    if options.accept and not options.live:
        raise InvalidInput("--accept", "the command line", "--live beside it")
    if options.generate and options.files:
        raise InvalidInput(str(options.files[0]), "the command line", "either scenarios or --generate")


class _Run:
    # One run of the command: what was compared so far, and how it is said.

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.series: Sequence[str] = options.kernel or tuple(PROBES)
        self.scenarios = self.steps = self.found = self.drifted = self.unrecorded = 0

    def run(self) -> int:
        began = time.monotonic()
        for series in self.series:
            if self.options.generate or self.options.live:
                with RealKernel(kernels.kernel_of(series), patience=self.options.patience) as real:
                    self._generated(real) if self.options.generate else self._live(real)
                    boots = real.boots, sum(real.boot_seconds)
            else:
                self._recorded(series)
                boots = 0, 0.0
            self._say_boots(series, *boots)
        return self._sum(time.monotonic() - began)

    def _files(self) -> list[Path]:
        return [_found(file) for file in self.options.files] or sorted(LIBRARY.glob("*.yaml"))

    # -- the three ways

    def _recorded(self, series: str) -> None:
        for file in self._files():
            path = _recording_path(file, series)
            scenario = load(file)
            if not path.exists():
                self._say_unrecorded(series, file, path)
                continue
            recording = Recording.load(path)
            if recording.scenario != fingerprint(file):
                raise InvalidInput(
                    file.name, str(path), "a recording of the scenario as it is now; record it again with --live --accept"
                )
            found = differences(play_model(scenario, PROBES[series].rules), recording.steps)
            self._say(series, file.stem, len(recording.steps) - 1, found, f"recorded {recording.version}")

    def _live(self, real: RealKernel) -> None:
        scenarios = [(file, load(file)) for file in self._files()]
        # Those of one machine together, so that they can share a guest.
        for file, scenario in sorted(scenarios, key=lambda pair: str(make_plan(pair[1]).shape.parameters)):
            began = time.monotonic()
            recording = real.record(scenario)
            seconds = time.monotonic() - began
            found = differences(play_model(scenario, real.rules), recording.steps)
            path = _recording_path(file, real.kernel.series)
            drift = self._drift(path, recording)
            if not drift or self.options.accept:
                recording.save(path)
            self._say(
                real.kernel.series, file.stem, len(recording.steps) - 1, found, f"{seconds:.1f} s, {recording.version}", drift
            )

    def _drift(self, path: Path, recording: Recording) -> list[Difference]:
        if not path.exists():
            return []
        before = Recording.load(path)
        if before.scenario != recording.scenario:
            return []
        drift = differences(before.steps, recording.steps)
        self.drifted += bool(drift)
        return drift

    def _generated(self, real: RealKernel) -> None:
        with tempfile.TemporaryDirectory(prefix="memhp-conform-") as directory:
            seeds = range(self.options.seed, self.options.seed + self.options.generate)
            # Those of one machine together, so that they can share a guest.
            for seed in sorted(seeds, key=lambda seed: (seed % len(SHAPES), seed)):
                made = generate(seed, self.options.steps)
                began = time.monotonic()
                found = self._compare(real, made.text(), Path(directory) / f"seed-{seed}.yaml")
                self._say(real.kernel.series, f"seed {seed}", len(made.steps), found, f"{time.monotonic() - began:.1f} s")
                if found:
                    self._shorten(real, made, Path(directory) / "shorter.yaml")

    def _compare(self, real: RealKernel, text: str, path: Path) -> list[Difference]:
        path.write_text(text, encoding="utf-8")
        scenario = load(path)
        return differences(play_model(scenario, real.rules), real.record(scenario).steps)

    def _shorten(self, real: RealKernel, made: Generated, path: Path) -> None:
        def shows(steps: Sequence[dict[str, Any]]) -> bool:
            try:
                return bool(self._compare(real, replace(made, steps=list(steps)).text(), path))
            except ScenarioError:
                return False

        shorter = replace(made, steps=shrink(made.steps, shows))
        self._print(f"        shortened to {len(shorter.steps)} steps: {write_scenario(shorter, self.options.keep)}")

    # -- what is said

    def _print(self, text: str) -> None:
        if not self.options.json:
            print(text, flush=True)

    def _say(
        self, series: str, name: str, steps: int, found: list[Difference], how: str, drift: Sequence[Difference] = ()
    ) -> None:
        self.scenarios += 1
        self.steps += steps
        self.found += len(found)
        if self.options.json:
            listed = {"differences": [asdict(difference) for difference in found], "drift": [asdict(d) for d in drift]}
            print(json.dumps({"kernel": series, "scenario": name, "steps": steps, "how": how, **listed}), flush=True)
            return
        verdict = "DIFFERS" if found else "DRIFTED" if drift else "agrees"
        print(f"{verdict:<7} {series:<5} {name:<36} {steps:>4} steps  ({how})", flush=True)
        for difference in found:
            print(f"  {difference}")
        for difference in drift:
            print(f"  recorded (model) against now (real): {difference}")

    def _say_unrecorded(self, series: str, file: Path, path: Path) -> None:
        self.unrecorded += 1
        if self.options.json:
            print(json.dumps({"kernel": series, "scenario": file.stem, "steps": None, "how": "not recorded"}), flush=True)
        else:
            print(f"missing {series:<5} {file.stem:<36} no recording at {path}; make one with --live", flush=True)

    def _say_boots(self, series: str, boots: int, seconds: float) -> None:
        if boots:
            self._print(f"        {series:<5} {boots} boots, {seconds / boots:.1f} s each")

    def _sum(self, seconds: float) -> int:
        sums = {
            "scenarios": self.scenarios,
            "steps": self.steps,
            "differences": self.found,
            "drifted": self.drifted,
            "unrecorded": self.unrecorded,
            "seconds": round(seconds, 1),
        }
        if self.options.json:
            print(json.dumps(sums))
        else:
            print(
                f"{self.scenarios} scenarios played on {' and '.join(self.series)}, {self.steps} steps in {seconds:.0f} s: "
                f"{self.found} differences"
                + (f", {self.drifted} recordings drifted" if self.drifted else "")
                + (f"; {self.unrecorded} not recorded" if self.unrecorded else "")
            )
        if self.found or self.drifted:
            return FAILED
        return NO_LAB if self.unrecorded else HELD


def _found(file: Path) -> Path:
    # A bare word is one of the library, unless there is a file of that name.
    known = LIBRARY / f"{file}.yaml"
    if file.exists() or len(file.parts) > 1:
        return file
    if not known.exists():
        close = difflib.get_close_matches(str(file), [path.stem for path in LIBRARY.glob("*.yaml")], 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InvalidInput(str(file), "the command line", f"a file, or a name of memhp's own library ({LIBRARY}){hint}")
    return known


def _recording_path(file: Path, series: str) -> Path:
    return file.parent / _RECORDED / series / f"{file.stem}.json"
