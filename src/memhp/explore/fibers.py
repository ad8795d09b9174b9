"""The tasks of an execution, their steps, and where in the program these are."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from greenlet import greenlet

from memhp.explore.ops import CAN_WAIT, NAMES
from memhp.locking import switch
from memhp.locking.switch import Op, Task, Waitable

__all__ = ["Abandoned", "Blocked", "Fiber", "Place", "Step", "Unmet", "place_of", "thread_number", "thread_of"]


class Abandoned(BaseException):
    """Raised in a task whose execution has ended without it."""


class Unmet(Exception):
    """Raised in a task that found something else than what was expected there.

    Attributes:
        where: names the expectation; equal for one and the same.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class Step:
    """One step of one task; also the announcement of one.

    ``kind`` is what happened, ``strong`` what it might have been (a failed try might have succeeded elsewhere); ``obj`` is
    the number of an object, negative for a thread (:func:`thread_number`) or, at a choice, nothing; ``index`` counts the
    task's steps from 1; ``clock`` has for each task the index of its last step that had to come before.
    """

    __slots__ = ("choice", "clock", "index", "kind", "obj", "strong", "task")

    def __init__(self, task: int, kind: int, obj: int, strong: int, index: int, choice: int = -1) -> None:
        self.task = task
        self.kind = kind
        self.obj = obj
        self.strong = strong
        self.index = index
        self.choice = choice
        self.clock: list[int] = []

    def __repr__(self) -> str:
        return f"<{self.task}.{self.index} {NAMES[self.kind]} {self.obj}{'' if self.choice < 0 else f'={self.choice}'}>"

    def same(self, other: Step) -> bool:
        """Say whether this is the same step of the same task on the same object."""
        return self.task == other.task and self.strong == other.strong and self.obj == other.obj

    def announced(self) -> Step:
        """Give it as it is known before it happens."""
        return Step(self.task, self.strong, self.obj, self.strong, self.index, self.choice)


def thread_number(task: int) -> int:
    """Give the number that stands for a thread where a step's object does; :func:`thread_of` gives the thread."""
    return -2 - task


thread_of = thread_number


class Place:
    """Where in the program a step was announced."""

    __slots__ = ("file", "function", "line")

    def __init__(self, frame: types.FrameType) -> None:
        self.file = frame.f_code.co_filename
        self.line = frame.f_lineno
        self.function = frame.f_code.co_qualname

    def __str__(self) -> str:
        parts = self.file.split("/")
        short = "/".join(parts[parts.index("memhp", 1) :] if "memhp" in parts[1:] else parts[-1:])
        return f"{self.function}() at {short}:{self.line}"


class Fiber:
    """One task of an execution."""

    __slots__ = (
        "begun",
        "choice",
        "end",
        "error",
        "function",
        "greenlet",
        "index",
        "label",
        "lock",
        "name",
        "op",
        "options",
        "steps",
        "task",
    )

    def __init__(self, index: int, name: str, function: Callable[[], Any]) -> None:
        self.index = index
        self.name = name
        self.function = function
        self.task = Task(name)
        self.greenlet: greenlet = greenlet(self._main)
        self.op: Op | None = None
        """What it will do next; None at a choice and after its end."""
        self.lock: Waitable | None = None
        self.label: Step | None = None
        """The announcement of its next step; None before its beginning and after its end."""
        self.begun = False
        self.end = End(name, self.task)
        self.options = 0
        self.choice = 0
        self.steps = 0
        self.error: BaseException | None = None

    def _main(self) -> None:
        try:
            self.function()
        except Abandoned:
            pass
        except BaseException as error:  # it is a finding, or raised in the one who explores
            self.error = error
        self.end.reached = True

    def ready(self) -> bool:
        """Say whether its next step can happen now."""
        label = self.label
        return label is not None and (not CAN_WAIT[label.kind] or self.lock.ready(self.task, self.op))  # type: ignore[union-attr, arg-type]


class End:
    """The end of a task, as something that others can wait for."""

    __slots__ = ("_task", "name", "reached")

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self._task = task
        self.reached = False

    def blockers(self, task: Task, op: Op) -> tuple[Task, ...]:
        """Give the task, until it has ended."""
        return () if self.reached else (self._task,)

    def ready(self, task: Task, op: Op) -> bool:
        """Say whether it has ended."""
        return self.reached


class Blocked:
    """A task that can't go on: what it waits for, who must act first, and what it holds."""

    def __init__(self, fiber: Fiber) -> None:
        assert fiber.lock is not None  # noqa: S101 - a blocked task waits for something
        assert fiber.op is not None  # noqa: S101
        self.task = fiber.name
        self.lock = fiber.lock.name
        self.op = fiber.op
        self.lock_class: str = getattr(fiber.lock, "lock_class", fiber.lock.name)
        self.by = tuple(sorted(task.name for task in fiber.lock.blockers(fiber.task, fiber.op)))
        self.holds = tuple(fiber.task.describe_held())

    def __str__(self) -> str:
        by = f", held by {' and '.join(self.by)}" if self.by and self.op is not Op.JOIN else ""
        return f"{self.task} waits for {self.lock} ({self.op.value}){by}"


_OWN = (__file__.rsplit("/", 1)[0] + "/", switch.__file__.rsplit("/", 1)[0] + "/")


def place_of(fiber: Fiber) -> Place | None:
    """Give where in the program a task is, outside of the locks and the explorer; None before its beginning and after its end."""
    frame = fiber.greenlet.gr_frame
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return None if frame is None else Place(frame)
