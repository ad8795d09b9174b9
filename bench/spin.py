"""The lock protocol of memory hotplug twice: as a model for SPIN, and as a scene with memhp's locks."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from memhp.explore import Scene
from memhp.locking import Mutex, PercpuRwSemaphore

__all__ = ["MODELS", "Model", "Spin"]

_PROMELA = """
bool dh, dl, block; byte readers;
inline lock(l)    {{ atomic {{ !l -> l = true }} }}
inline unlock(l)  {{ l = false }}
inline begin()    {{ atomic {{ !block -> block = true }}; readers == 0 }}
inline done()     {{ block = false }}
inline enter()    {{ atomic {{ !block -> readers++ }} }}
inline leave()    {{ readers-- }}
proctype User()   {{ {take} lock(dl); begin(); done(); unlock(dl); {give} }}
proctype Adder()  {{ {take} begin(); lock(dl); unlock(dl); done(); {give} }}
proctype Reader() {{ enter(); leave() }}
init {{ atomic {{ {runs} }} }}
"""


@dataclass(frozen=True, slots=True)
class Model:
    """So many threads that bring a block online, that add one, and that read; with device_hotplug_lock or without."""

    users: int
    adders: int
    readers: int
    device_hotplug_lock: bool

    @property
    def name(self) -> str:
        """What it is, in short."""
        lock = "with" if self.device_hotplug_lock else "without"
        return f"{self.users} online, {self.adders} add, {self.readers} read, {lock} device_hotplug_lock"

    @property
    def promela(self) -> str:
        """The model for SPIN."""
        kinds = ["User"] * self.users + ["Adder"] * self.adders + ["Reader"] * self.readers
        take, give = ("lock(dh);", "unlock(dh)") if self.device_hotplug_lock else ("", "skip")
        return _PROMELA.format(take=take, give=give, runs="; ".join(f"run {kind}()" for kind in kinds))

    def scene(self, scene: Scene) -> None:
        """The scene for the explorer."""
        device, block = Mutex("device_lock"), PercpuRwSemaphore("mem_hotplug_lock")
        outer = Mutex("device_hotplug_lock") if self.device_hotplug_lock else None

        def within(inner: str) -> None:
            if outer is not None:
                with outer:
                    steps[inner]()
            else:
                steps[inner]()

        def online() -> None:
            with device, block.write:
                pass

        def add() -> None:
            with block.write, device:
                pass

        def read() -> None:
            with block.read:
                pass

        steps = {"online": online, "add": add}
        for number in range(self.users):
            scene.thread(f"user{number}", within, "online")
        for number in range(self.adders):
            scene.thread(f"adder{number}", within, "add")
        for number in range(self.readers):
            scene.thread(f"reader{number}", read)


MODELS = tuple(Model(*counts, lock) for counts in ((1, 1, 0), (1, 1, 2), (2, 2, 1)) for lock in (True, False))


class Spin:
    """SPIN in a directory of its own."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def check(self, model: Model) -> tuple[bool, int]:
        """Say whether the model can deadlock, and how many states were stored."""
        (self._place / "model.pml").write_text(model.promela)
        self._run("spin", "-a", "model.pml")
        self._run("gcc", "-O2", "-DSAFETY", "-o", "pan", "pan.c")
        said = self._run("./pan")
        states = re.search(r"(\d+) states, stored", said)
        errors = re.search(r"errors: (\d+)", said)
        if states is None or errors is None:
            raise RuntimeError(f"SPIN said something else: {said}")
        return errors[1] != "0", int(states[1])

    def _run(self, *command: str) -> str:
        done = subprocess.run(  # noqa: S603 - our own
            command, cwd=self._place, check=True, capture_output=True, text=True
        )
        return done.stdout
