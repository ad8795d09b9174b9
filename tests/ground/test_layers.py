"""Imports go down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import memhp

SOURCE = Path(memhp.__file__).parent

LAYERS = [
    {"errors", "units", "events", "locking", "notifier"},  # the ground
    {"abi"},  # the seam
    {"kernel", "host"},  # either side of it; these never import each other
    {"scenario", "explore", "lab", "study", "conform"},
    {"service", "cli"},
]
FACE = ""
"""The package itself, ``memhp/__init__.py``, which gathers the public names: only what stands above the model uses it."""
RANK = {FACE: 3, **{room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}}
STRANGERS = {("kernel", "host"), ("host", "kernel")}


def imported(source: str, package: list[str]) -> Iterator[tuple[int, str]]:
    """Give line and dotted name of each import of memhp, wherever in the text it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package[: len(package) - node.level + 1] if node.level else []), *filter(None, [node.module])])
            # ``from memhp import x`` may mean the module x or a public name.
            yield from ((node.lineno, f"{base}.{alias.name}" if base == "memhp" else base) for alias in node.names)


def room_of(dotted: str) -> str | None:
    """Give the room that a dotted name leads to, '' for the package itself, None for other people's modules."""
    first, _, rest = dotted.partition(".")
    if first != "memhp":
        return None
    room = rest.partition(".")[0]
    return room if room in RANK else FACE


def upward(root: Path) -> list[str]:
    """List the imports that go up, or across the seam."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        room = parts[0] if parts != ("__init__",) else FACE
        for line, dotted in imported(path.read_text(), ["memhp", *parts[:-1]]):
            target = room_of(dotted)
            if target is not None and (RANK[target] > RANK[room] or (room, target) in STRANGERS):
                found.append(f"{'/'.join(parts)}.py:{line} imports {dotted}")
    return found


def test_every_room_has_its_layer() -> None:
    """A new room must be given its place in the house."""
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}
    assert rooms - {"__init__"} <= set(RANK)


def test_imports_go_down_only() -> None:
    """The ground, the seam, the two sides of it, what plays on them, the faces: nobody imports from above."""
    assert upward(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("units.py", "from memhp.errors import InvalidInput", []),
        ("units.py", "import numpy, os.path", []),
        ("units.py", "from memhp.abi import paths", ["units.py:1 imports memhp.abi"]),
        ("locking/mutex.py", "from memhp import kernel", ["locking/mutex.py:1 imports memhp.kernel"]),
        ("locking/mutex.py", "import memhp.kernel.machine", ["locking/mutex.py:1 imports memhp.kernel.machine"]),
        ("kernel/zones.py", "from memhp import Machine", ["kernel/zones.py:1 imports memhp.Machine"]),
        ("kernel/zones.py", "from ..host import plan", ["kernel/zones.py:1 imports memhp.host"]),
        ("kernel/zones.py", "from .boot import zones_of\nfrom ..abi.tree import Tree", []),
        ("host/plan.py", "import memhp.kernel.zones", ["host/plan.py:1 imports memhp.kernel.zones"]),
        ("abi/tree.py", "if TYPE_CHECKING:\n    from memhp.host import Plan", ["abi/tree.py:2 imports memhp.host"]),
        ("abi/tree.py", "def late():\n    from memhp.cli import main", ["abi/tree.py:2 imports memhp.cli"]),
        ("scenario/play.py", "from memhp import Machine\nimport memhp.kernel", []),
        ("lab/drive.py", "from memhp.service import daemon", ["lab/drive.py:1 imports memhp.service"]),
        ("cli/__init__.py", "from memhp.scenario import play\nfrom memhp.service import daemon", []),
        ("__init__.py", "from memhp.kernel import Machine\nfrom memhp.cli import main", ["__init__.py:2 imports memhp.cli"]),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, file: str, text: str, found: list[str]) -> None:
    """Also inside functions, under TYPE_CHECKING, and in each way of writing an import."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert upward(tmp_path) == found
