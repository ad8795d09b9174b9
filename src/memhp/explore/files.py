"""Files to explore: scenarios with threads, and Python files with functions that make a scene."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from memhp.errors import HotplugError, InvalidInput, LockError, MemhpError, ScenarioError, errno_name
from memhp.explore.fibers import Abandoned, Unmet
from memhp.explore.scene import Scene
from memhp.explore.search import Build
from memhp.locking import Task
from memhp.notifier import NotifierBlock
from memhp.scenario import load
from memhp.scenario.act import Actor
from memhp.scenario.begin import make_machine
from memhp.scenario.behaviours import Holdings, make_callback
from memhp.scenario.devices import devices_of
from memhp.scenario.model import CallbackSpec, Expectations, Scenario, Step
from memhp.scenario.select import nobody
from memhp.scenario.verdict import same_result

__all__ = ["scenes"]

_MAIN = "main"


def scenes(file: str) -> dict[str, Build]:
    """Give the scenes of a file by name: one for a scenario, the functions of a Python file; ``file.py:function`` is one.

    Raises:
        InvalidInput: the file can't be read, is no scenario, or has no such function.
    """
    path, _, function = file.partition(":") if ".py" in file else (file, "", "")
    if path.endswith(".py"):
        return _functions(Path(path), function)
    scenario = load(path)
    if not any(step.thread for step in scenario.steps):
        raise InvalidInput(path, "explore", "a scenario in which steps have a thread (thread: NAME)")
    return {Path(path).stem: lambda scene: _Stage(scenario, scene)}


# -- Python files


def _functions(path: Path, wanted: str) -> dict[str, Build]:
    module = _module(path)
    found: dict[str, Build] = {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and _makes_a_scene(function)
    }
    if wanted:
        if wanted not in found:
            listed = ", ".join(found) or "none"
            raise InvalidInput(wanted, str(path), f"the name of a function whose one parameter is called scene ({listed})")
        return {wanted: found[wanted]}
    if not found:
        raise InvalidInput(str(path), "explore", "a file with a function whose one parameter is called scene")
    return found


def _makes_a_scene(function: Any) -> bool:
    # Others may have defaults; a helper that passes keywords on is no scene.
    parameters = list(inspect.signature(function).parameters.values())
    needed = [one.name for one in parameters if one.default is one.empty]
    return needed == ["scene"]


def _module(path: Path) -> ModuleType:
    name = f"memhp_explored_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InvalidInput(str(path), "explore", "a Python file that exists")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a module can raise anything while it is imported
        raise InvalidInput(str(path), "explore", f"a file that can be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop(0)
    return module


# -- scenarios


class _Crew:
    # The threads of a scenario, for the step that sends a signal to one.
    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def thread(self, name: str) -> Task | None:
        execution = self._scene.execution
        fibers = execution.fibers if execution is not None else []
        return next((fiber.task for fiber in fibers if fiber.name == name), None)


class _Stage:
    # One execution of a scenario: what comes before the first thread is done at once, the rest in threads.
    def __init__(self, scenario: Scenario, scene: Scene) -> None:
        self._scenario = scenario
        self.machine, _ = make_machine(scenario, scenario.machine.rules, scene.lockdep())
        holdings = Holdings(self.machine)
        blocks = {spec.name: self._block(spec, holdings) for spec in scenario.callbacks}
        devices = devices_of(scenario, self.machine)
        self._actor = Actor(self.machine, holdings, _Crew(scene), blocks, scenario.file, devices)  # type: ignore[arg-type]
        for spec in scenario.callbacks:
            if spec.registered:
                self.machine.memory_chain.register(blocks[spec.name])
        steps = [step for step in scenario.steps if step.verb != "note"]
        first = next(place for place, step in enumerate(steps) if step.thread)
        wanted = {step.number for step in steps if scene.part(f"step {step.number}")}
        for step in steps[:first]:
            if step.number in wanted:
                self._set_up(step)
        for name in dict.fromkeys(step.thread or _MAIN for step in steps[first:]):
            mine = [step for step in steps[first:] if (step.thread or _MAIN) == name and step.number in wanted]
            scene.thread(name, self._play, mine)
        scene.at_end(self._check)

    def _block(self, spec: CallbackSpec, holdings: Holdings) -> NotifierBlock:
        # Time has no meaning where every order is tried.
        reactions = {action: dataclasses.replace(reaction, delay=0.0) for action, reaction in spec.reactions.items()}
        spec = dataclasses.replace(spec, reactions=reactions)
        callback = make_callback(spec, self._scenario.file, self.machine, holdings, lambda name, what: None)
        return NotifierBlock(callback, spec.priority, spec.name)

    def _set_up(self, step: Step) -> None:
        wanted = step.expect.result if step.expect is not None and step.expect.result is not None else "ok"
        result, _ = self._result(step)
        if not same_result(result, wanted):
            raise ScenarioError(result, str(self._scenario.file), step.line, wanted, f"step {step.number}: {step.shown}")

    def _play(self, steps: list[Step]) -> None:
        for step in steps:
            self._compare(step, *self._result(step))

    def _compare(self, step: Step, result: str, text: str) -> None:
        # What a thread gets and sees is the same in all executions of a class; what callbacks and uevents of all threads
        # came meanwhile is not.
        expect, overall = step.expect, self._scenario.expect
        if expect is None or expect.as_written or (overall is not None and overall.as_written):
            return
        where = f"step {step.number} ({step.shown})"
        if expect.result is not None and not same_result(result, expect.result):
            raise Unmet(f"{where} ended with {result}, expected {expect.result}", where)
        if expect.text is not None and text.strip() != expect.text.strip():
            raise Unmet(f"{where} gave {text.strip()!r}, expected {expect.text.strip()!r}", where)
        for differs in self._differences(expect, f"after {where}"):
            raise Unmet(differs, where)

    def _result(self, step: Step) -> tuple[str, str]:
        # A request may fail in some orders and not in others; only misuse of locks, and what isn't memhp's, is a finding.
        try:
            text = self._actor.act(step)
        except (LockError, Abandoned):
            raise
        except HotplugError as error:
            result = errno_name(error.errno or 0)
        except MemhpError as error:
            result = "EINVAL" if type(error) is InvalidInput else type(error).__name__
        else:
            return "ok", text
        self._actor.selector.lose(step, result)
        return result, ""

    def _check(self) -> None:
        expect = self._scenario.expect
        for differs in self._differences(expect, "in the end") if expect is not None else ():
            raise AssertionError(differs)

    def _differences(self, expect: Expectations, when: str) -> Iterator[str]:
        for path, text in expect.files:
            found = self._text_of(expect, path)
            if found != text.strip():
                yield f"{path} is {found!r} {when}, expected {text.strip()!r}"
        for selection, state in expect.blocks:
            try:
                chosen = self._actor.selector.resolve(nobody(expect, "blocks"), selection, None)
            except HotplugError as error:
                yield f"there are no blocks {when}: {error.strerror}"
                continue
            for number in chosen:
                block = self.machine.blocks.get(number)
                what = "absent" if block is None else block.state.value
                if what != state:
                    yield f"memory{number} is {what} {when}, expected {state}"

    def _text_of(self, expect: Expectations, path: str) -> str:
        try:
            return self.machine.tree.read(self._actor.selector.path(nobody(expect, "files"), path)).strip()
        except HotplugError as error:
            return errno_name(error.errno or 0)
