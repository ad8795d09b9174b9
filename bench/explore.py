"""The explorer: peers' programs with their published counts, speed, bugs by strategy, and SPIN beside it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Figure, duration, heading, table
from bench.peers import FAST, LONG, Peer
from bench.spin import MODELS, Spin
from memhp.explore import Limits, Result, Scene, explore

__all__ = ["run"]

ROOT = Path(__file__).parents[1]
MOST_BRUTE = 20_000
"""Schedules that brute force plays at most."""
TARGET_LASTZERO = 180.0
TARGET_DEADLOCK = 0.05


def run() -> list[Figure]:
    """Take all the figures; the long programs take minutes."""
    sys.path.insert(0, str(ROOT / "examples" / "explore"))
    figures = [*_peers(), *_claims(), *_start()]
    _bugs()
    return [*figures, *_spin()]


# -- peers


def _peers() -> list[Figure]:
    heading("programs with published numbers of classes: executions of optimal, and schedules of brute force")
    rows, met, slow = [], True, 0.0
    for peer in (*FAST, *LONG):
        result = explore(peer.build, everything=True, limits=Limits(patience=60))
        right = (result.executions, result.redundant) == (peer.classes, 0)
        met &= right
        slow = result.seconds if peer.name == "lastzero(15)" else slow
        rows.append((peer.name, peer.source, f"{peer.classes:,}", f"{result.executions:,}", _brute(peer), *_rates(result)))
    table(("", "published by", "classes", "executions", "schedules", "time", "executions/s", "steps/s"), rows)
    return [
        Figure("every published count, nothing twice", "all", "all" if met else "not all", met),
        Figure("lastzero(15), 147,456 classes", f"< {TARGET_LASTZERO:.0f} s", f"{slow:.0f} s", slow < TARGET_LASTZERO),
    ]


def _brute(peer: Peer) -> str:
    if peer in LONG:
        return ""
    result = explore(peer.build, strategy="brute", everything=True, limits=Limits(executions=MOST_BRUTE, seconds=20))
    return f"> {result.executions:,}" if result.limit else f"{result.executions:,}"


def _rates(result: Result) -> tuple[str, str, str]:
    seconds = max(result.seconds, 1e-9)
    return duration(seconds), f"{result.executions / seconds:,.0f}", f"{result.steps / seconds:,.0f}"


# -- the document's claims, and bugs


def _claims() -> list[Figure]:
    import claims  # noqa: PLC0415 - in examples/explore

    heading("the document's claims on the modelled machine, by complete search")
    scenes: list[Callable[[Scene], None]] = [
        claims.add_against_online,
        claims.everybody,
        claims.eject_against_stores,
        claims.readers_see_what_stays,
        claims.callbacks_hear_whole_stories,
        claims.unregister_waits,
        claims.no_half_states,
    ]
    rows, seconds, holds = [], 0.0, True
    for scene in scenes:
        result = explore(scene)
        holds &= result.verdict.value == "holds"
        seconds += result.seconds
        rows.append((scene.__name__, result.verdict.value, f"{result.executions:,}", f"{result.steps:,}", *_rates(result)))
    table(("", "verdict", "executions", "steps", "time", "executions/s", "steps/s"), rows)
    return [Figure("the claims, complete", "< 600 s, all hold", f"{seconds:.1f} s", holds and seconds < 600)]


def _bugs() -> None:
    import bugs  # noqa: PLC0415 - in examples/explore

    heading("planted bugs: executions and time until found, by strategy")
    strategies = ("optimal", "source", "brute", "bounded", "random", "pct")
    rows = []
    for scene in (bugs.without_device_hotplug_lock, bugs.store_that_waits, bugs.reader_in_a_reader):
        cells = []
        for strategy in strategies:
            result = explore(scene, strategy=strategy, smaller=False, limits=Limits(seconds=30))
            cells.append(f"{result.executions:,} / {duration(result.seconds)}" if result.findings else "not found")
        rows.append((scene.__name__, *cells))
    table(("", *strategies), rows)


# -- how soon

_TWO = """
from memhp.explore import explore
from memhp.locking import Mutex

def scene_of(scene):
    a, b = Mutex("a"), Mutex("b")
    def take(first, second):
        with first, second:
            pass
    scene.thread("one", take, a, b)
    scene.thread("two", take, b, a)

assert explore(scene_of).deadlocks == 1
"""


def _start() -> list[Figure]:
    with tempfile.TemporaryDirectory() as place:
        # As where it is installed: compiled once, whatever this process was told about that.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": place}
        _processor_time(_TWO, environment)
        bare, two = (min(_processor_time(text, environment) for _ in range(5)) for text in ("pass", _TWO))
    heading("a deadlock of two threads, the whole process")
    print(f"interpreter {duration(bare)}, with the deadlock found and made smaller {duration(two)} (processor time, best of 5)")
    return [
        Figure(
            "two threads' deadlock beyond the interpreter",
            f"< {duration(TARGET_DEADLOCK)}",
            duration(two - bare),
            two - bare < TARGET_DEADLOCK,
        )
    ]


def _processor_time(text: str, environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", text], check=True, env=environment)  # noqa: S603 - our own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# -- SPIN


def _spin() -> list[Figure]:
    heading("the same protocol of locks in SPIN: verdict, states or executions, and time from nothing to the answer")
    if shutil.which("spin") is None or shutil.which("gcc") is None:
        print("spin or gcc is not installed (apt-get install spin gcc): left out")
        return []
    rows, agree = [], True
    for model in MODELS:
        with tempfile.TemporaryDirectory() as place:
            begin = time.perf_counter()
            deadlocks, states = Spin(Path(place)).check(model)
            theirs = time.perf_counter() - begin
        result = explore(model.scene, name=model.name, everything=True, smaller=False, limits=Limits(seconds=120))
        mine = bool(result.deadlocks)
        agree &= mine == deadlocks and (mine or result.complete)
        rows.append(
            (
                model.name,
                "deadlock" if deadlocks else "none",
                f"{states:,} states, {duration(theirs)}",
                "deadlock" if mine else "none" if result.complete else "not decided",
                f"{result.executions:,} executions, {duration(result.seconds)}",
            )
        )
    table(("", "SPIN", "", "memhp", ""), rows)
    return [Figure("verdicts of SPIN and the explorer", "agree", "agree" if agree else "differ", agree)]
