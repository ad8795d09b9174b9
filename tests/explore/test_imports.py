"""What the first deadlock imports: most of the time until it is found, so nobody may slow it unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import greenlet

SCRIPT = """
import sys
before = set(sys.modules)
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
print(*sorted(set(sys.modules) - before))
"""

OURS = ["memhp", "memhp.errors", "memhp.explore"]
OURS += [f"memhp.explore.{name}" for name in ("api", "execution", "fibers", "fields", "findings", "happens", "minimise", "ops")]
OURS += [f"memhp.explore.{name}" for name in ("registry", "scene", "schedule", "search", "strategies")]
OURS += [f"memhp.explore.strategies.{name}" for name in ("brute", "optimal", "reduction", "replay")]
OURS += ["memhp.explore.watchdog", "memhp.locking"]
OURS += [f"memhp.locking.{name}" for name in ("active", "guards", "lockdep", "lockgraph", "lockmap", "lockreport", "mutex")]
OURS += ["memhp.locking.percpu", "memhp.locking.switch"]

LARGE = {"argparse", "ast", "copy", "dataclasses", "inspect", "json", "logging", "numpy", "pathlib", "textwrap", "traceback"}


def test_a_deadlock_of_two_threads_imports_locks_explorer_and_little_else() -> None:
    """Neither the machine nor what takes long: dataclasses and all that these bring, logging, drawing, other strategies."""
    places = [str(Path(__file__).parents[2] / "src"), str(Path(greenlet.__file__).parents[1])]
    script = f"import sys; sys.path[:0] = {places!r}" + SCRIPT
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, capture_output=True, text=True)
    found = done.stdout.split()
    assert [name for name in found if name.startswith("memhp")] == OURS
    assert LARGE.intersection(found) == set()
