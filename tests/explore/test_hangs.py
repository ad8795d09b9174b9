"""Whatever a thread does, the answer is a verdict and no hang: from the command line, and in the fixture."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memhp import InvalidInput
from memhp.cli import main
from memhp.explore import Limits, Result, Scene, explore

SCENES = """
import itertools, threading, time
from memhp.locking import Mutex

def sleeps(scene):
    scene.thread("t", time.sleep, 3600)

def blocks(scene):
    scene.thread("t", threading.Semaphore(0).acquire)

def computes(scene):
    scene.thread("t", lambda: [None for _ in itertools.count()])

def steps(scene):
    mutex = Mutex("m")
    def turn():
        while True:
            with mutex:
                pass
    scene.thread("t", turn)

def before(scene):
    time.sleep(3600)

def afterwards(scene):
    scene.thread("t", lambda: None)
    scene.at_end(lambda: time.sleep(3600))
"""
WAITS = "t did not come to its next step within 0.2 s: it blocks outside of the controlled locks, sleeps or never ends"
VERDICTS = {
    "sleeps": (1, f"stuck: {WAITS}"),
    "blocks": (1, f"stuck: {WAITS}"),
    "computes": (1, f"stuck: {WAITS}"),
    "steps": (1, "never ends: t is still at it after 100 steps of the execution"),
    "before": (2, "expected a scene whose function and checks end within 0.2 s (it was in before() at scenes.py:"),
    "afterwards": (2, "expected a scene whose function and checks end within 0.2 s (it was in afterwards.<locals>.<lambda>() at"),
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "scenes.py"
    path.write_text(SCENES)
    return str(path)


@pytest.mark.parametrize("name", VERDICTS)
def test_the_command_ends_with_a_verdict(file: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Who sleeps, blocks, computes or turns in circles is named; a scene's own code is bad input."""
    code = main(["explore", f"{file}:{name}", "--patience", "0.2", "--steps", "100"])
    out, err = capsys.readouterr()
    assert code == VERDICTS[name][0]
    assert VERDICTS[name][1] in out + err


TASKS: dict[str, tuple[Callable[[], object], str]] = {
    "sleeps": (lambda: time.sleep(3600), "stuck: t did not come"),
    "blocks": (lambda: threading.Event().wait(), "stuck: t did not come"),
    "computes": (lambda: [None for _ in itertools.count()], "stuck: t did not come"),
}


@pytest.mark.parametrize("how", TASKS)
def test_the_fixture_fails_the_test(explore: Callable[..., Result], how: str) -> None:
    """With the same words."""
    task, says = TASKS[how]
    with pytest.raises(pytest.fail.Exception, match=says):
        explore(lambda scene: scene.thread("t", task), name="stuck", limits=Limits(patience=0.2))


def test_an_abandoned_thread_may_not_hold_up_the_others(explore: Callable[..., Result]) -> None:
    """One fails; another one, told to give up, sleeps on its way out."""

    def scene_of(scene: Scene) -> None:
        x = scene.cell("x", 0)

        def fail() -> None:
            x.set(1)
            raise ZeroDivisionError

        def linger() -> None:
            try:
                x.get()
                x.get()
            finally:
                time.sleep(3600)

        scene.thread("failing", fail)
        scene.thread("lingering", linger)

    with pytest.raises(pytest.fail.Exception, match="exception: failing raised ZeroDivisionError"):
        explore(scene_of, limits=Limits(patience=0.2))


def test_a_scene_that_does_not_come_to_its_end_is_bad_input() -> None:
    """In Python as on the command line."""
    with pytest.raises(InvalidInput, match=r"end within 0.1 s \(it was in .*<lambda>\(\) at test_hangs.py:\d+\)"):
        explore(lambda scene: time.sleep(3600), name="slow", limits=Limits(patience=0.1))


DEBUGGED = """
from memhp.locking import Mutex

def inversion(scene):
    a, b = Mutex("a"), Mutex("b")
    def take(first, second):
        with first:
            breakpoint()
            with second:
                pass
    scene.thread("one", take, a, b)
    scene.thread("two", take, b, a)
"""
AT_THE_PROMPT = ["p first, second", "import time; time.sleep(1)", "up", "p self.name", "continue"]
"""What somebody types, and takes longer for than a thread may take to its next step."""


def test_a_replay_runs_in_a_debugger(tmp_path: Path) -> None:
    """Each thread stops at the breakpoint, with its own stack and variables, and time to think; then the replay goes on."""
    file = tmp_path / "debugged.py"
    file.write_text(DEBUGGED)
    command = [sys.executable, "-m", "memhp.cli", "explore", str(file), "--patience", "0.3"]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=False, timeout=60)
    explored = run(command, env={**os.environ, "PYTHONBREAKPOINT": "0"})
    schedule = explored.stdout.partition("--replay '")[2].partition("'")[0]
    assert schedule.startswith("mhx1:inversion:0:aAbA:deadlock:")
    done = run([*command, "--replay", schedule], input="\n".join(AT_THE_PROMPT * 2) + "\n")
    assert done.returncode == 1, done.stderr
    shown = [line.removeprefix("(Pdb) ") for line in done.stdout.splitlines()]
    assert [line for line in shown if line.startswith("(<Mutex")] == [
        "(<Mutex a held by one>, <Mutex b free>)",
        "(<Mutex b held by two>, <Mutex a held by one>)",
    ]
    assert [line for line in shown if line in {"'one'", "'two'"}] == ["'one'", "'two'"]
    assert "deadlock: one waits for b (acquire), held by two; two waits for a (acquire), held by one" in shown
