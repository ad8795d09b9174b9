"""Fields that threads share: every one of the machine is known, and what orders accesses to it is found out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import memhp
from memhp import Machine, MemoryAction, NotifierBlock, NotifierChain
from memhp.explore import Scene, Verdict, declare, explore
from memhp.explore.machine import FIELDS, REACHED_THROUGH_OTHERS, UNDECLARED
from memhp.kernel.blocks import MemoryBlock
from memhp.locking import Mutex

SOURCE = Path(memhp.__file__).parent
CHANGING = {"append", "add", "discard", "remove", "pop", "clear", "update", "insert", "extend", "setdefault", "popitem"}


def changed(node: ast.AST) -> Iterator[ast.expr]:
    """Give what a statement or a call changes."""
    if isinstance(node, ast.Assign | ast.Delete):
        yield from node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        yield node.target
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in CHANGING:
            yield node.func.value
        elif node.func.attr == "insort":
            yield node.args[0]


def attributes(source: str) -> Iterator[tuple[str, int]]:
    """Give the attributes that are changed outside of ``__init__``, with their lines."""
    tree = ast.parse(source)
    inits = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    born = {id(inner) for init in inits for inner in ast.walk(init)}
    for node in ast.walk(tree):
        for target in changed(node) if id(node) not in born else ():
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                place = one
                while isinstance(place, ast.Subscript):
                    place = place.value
                if isinstance(place, ast.Attribute):
                    yield place.attr, place.lineno


def test_every_field_that_the_machine_changes_is_declared() -> None:
    """A field that is forgotten would be shared behind the explorer's back; one that needs no watching says why."""
    known = {field.name for field in FIELDS} | {name for names in UNDECLARED for name in names.split()}
    kernel = [file for file in sorted((SOURCE / "kernel").glob("*.py")) if file.name not in REACHED_THROUGH_OTHERS]
    files = [*kernel, SOURCE / "notifier.py"]
    missing = [f"{file.name}:{line} {name}" for file in files for name, line in attributes(file.read_text()) if name not in known]
    assert missing == [], "declare them in memhp/explore/machine.py"


def test_a_field_that_is_not_declared_would_be_found() -> None:
    """The test above can fail: each way of changing is seen, and __init__ is not."""
    text = """
class A:
    def __init__(self):
        self.x = 1

    def change(self, other):
        self.a, other.b = 1, 2
        other.c += 1
        other.d[3] = 4
        del other.e[5]
        other.f.append(6)
        bisect.insort(other.g, 7)
"""
    assert [name for name, _ in attributes(text)] == ["a", "b", "c", "d", "e", "f", "g"]


def test_every_declared_field_exists() -> None:
    """The table names attributes that are there, so that a renamed one is noticed."""
    names = {(field.owner, field.name) for field in FIELDS}
    assert len(names) == len(FIELDS)
    slots = {(owner, name) for owner, name in names if "__slots__" in owner.__dict__}
    assert [f"{owner.__name__}.{name}" for owner, name in slots if name not in owner.__dict__] == []


def test_classes_are_as_before_when_the_search_is_over() -> None:
    """What watches the fields is gone, also after an error."""
    before = MemoryBlock.__dict__["state"], Machine.__dict__.get("blocks")

    def fail(scene: Scene) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explore(fail)
    assert (MemoryBlock.__dict__["state"], Machine.__dict__.get("blocks")) == before


class Box:
    def __init__(self) -> None:
        self.content = ""


declare(Box, "content", label=lambda box: "box")


def publisher(scene: Scene, *, in_order: bool) -> None:
    """One fills a box and then says that it is full; the other looks whether it is, and into it."""
    box, full = Box(), scene.cell("full", False)

    def fill() -> None:
        if in_order:
            box.content = "tea"
            full.set(True)
        else:
            full.set(True)
            box.content = "tea"

    def look() -> None:
        if full.get():
            assert box.content == "tea", "the box is empty"

    scene.thread("filler", fill)
    scene.thread("looker", look)


def test_what_is_published_in_order_needs_no_lock_and_no_steps() -> None:
    """The flag orders the accesses to the box: nothing is shared, two executions."""
    result = explore(lambda scene: publisher(scene, in_order=True), name="in order")
    assert (result.verdict, result.executions, result.shared) == (Verdict.HOLDS, 2, ())


def test_what_follows_a_step_is_not_ordered_by_it() -> None:
    """Nothing happens between two steps of a thread, yet that the flag was set orders nothing that comes after it."""
    result = explore(lambda scene: publisher(scene, in_order=False), name="too early")
    assert result.shared == ("Box.content",)
    assert result.findings[0].reason == "looker raised AssertionError: the box is empty"


def test_two_locks_that_guard_one_field_are_none() -> None:
    """Each thread holds a lock, and not the same one."""

    def scene_of(scene: Scene) -> None:
        box = Box()

        def fill(mutex: Mutex) -> None:
            with mutex:
                box.content += "x"

        scene.thread("one", fill, Mutex("a"))
        scene.thread("two", fill, Mutex("b"))
        scene.at_end(lambda: box.content == "xx")

    result = explore(scene_of)
    assert (result.shared, result.verdict) == (("Box.content",), Verdict.FAILS)


def test_an_empty_chain_is_looked_at_under_its_lock() -> None:
    """The short cut past the lock would hide the race of a first registration with a call."""

    def scene_of(scene: Scene) -> None:
        chain, heard = NotifierChain(), []
        block = NotifierBlock(lambda block, action, arg: heard.append(arg) or memhp.NOTIFY_OK, 0, "callback")  # type: ignore[func-returns-value]
        scene.thread("caller", chain.call, MemoryAction.MEM_ONLINE, "call")
        scene.thread("registrar", chain.register, block)
        scene.at_end(lambda: outcomes.add(len(heard)))

    outcomes: set[int] = set()
    assert explore(scene_of).verdict is Verdict.HOLDS
    assert outcomes == {0, 1}
