"""What each command imports: starting is most of the time of a short command, so nobody may slow it unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trees import TreeSpec, block

LIST = ["__future__", "memhp", "memhp.abi", "memhp.abi.directory", "memhp.abi.paths", "memhp.cli", "memhp.cli.getopt_long"]
LIST += ["memhp.cli.listing", "memhp.cli.table", "memhp.host", "memhp.host.scan"]

SCRIPT = """
import sys
before = set(sys.modules)
from memhp.cli import main
main({arguments!r})
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def imported(*arguments: str) -> list[str]:
    """Give what a command imports that a bare interpreter hasn't, without ``site`` and what it drags in."""
    source = Path(__file__).parents[2] / "src"
    script = f"import sys; sys.path.insert(0, {str(source)!r})" + SCRIPT.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, capture_output=True, text=True)
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("options", [[], ["-a"], ["--json", "-a"], ["-o", "+NODE,ZONES"], ["--raw", "--output-all"]])
def test_list_imports_nothing_but_itself(options: list[str], tmp_path: Path) -> None:
    """Ten small modules of memhp's own, and nothing of the standard library."""
    root = TreeSpec(blocks={0: block(), 1: block()}).write(tmp_path / "root")
    assert imported("list", "-s", str(root), *options) == LIST


EXPLAIN = [
    "abi.formats",
    "abi.pageflags",
    "abi.proc",
    "abi.tree",
    "cli.explain",
    "cli.text",
    "errors",
    "host.block",
    "host.explain",
]
EXPLAIN += ["host.frames", "host.inventory", "host.parallel", "host.survey", "units"]
PLAN = [*EXPLAIN, "cli.plan", "host.goal", "host.plan"]
CHANGE = [*PLAN, "cli.change", "cli.signals", "host.journal", "host.outcome"]
ALWAYS = ["memhp", "memhp.abi", "memhp.abi.directory", "memhp.abi.paths", "memhp.cli", "memhp.host"]

# Each of these would take a tenth of the time that such a command needs to start, or more.
LARGE = {"asyncio", "dataclasses", "inspect", "logging", "numpy", "pathlib", "shutil", "textwrap", "urllib", "yaml"}


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["explain"], EXPLAIN),
        (["explain", "0-1"], EXPLAIN),
        (["plan", "offline", "128M"], {*PLAN} - {"cli.explain"}),
        (["offline", "128M", "--dry-run"], {*CHANGE} - {"cli.explain"}),
    ],
)
def test_what_answers_once_imports_what_it_needs(arguments: list[str], ours: list[str], tmp_path: Path) -> None:
    """Neither locks nor a chain of notifiers nor a library that most runs don't need."""
    root = TreeSpec(blocks={0: block(), 1: block()}).write(tmp_path / "root")
    found = imported(*arguments, "-s", str(root))
    assert sorted(name for name in found if name.startswith("memhp")) == sorted([*ALWAYS, *(f"memhp.{name}" for name in ours)])
    assert {name.partition(".")[0] for name in found} & {*LARGE, "json" if arguments[0] in {"explain", "plan"} else ""} == set()


@pytest.mark.parametrize(
    ("arguments", "rooms"),
    [
        (["chmem", "--help"], {"abi", "cli", "errors", "host"}),
        (["policy", "--sysroot", "/proc/self/nothing"], {"abi", "cli", "errors", "host", "units"}),
        (["doctor", "--sysroot", "/proc/self/nothing"], {"abi", "cli", "errors", "host", "units"}),
        (["watch", "--timeout", "0"], {"abi", "cli", "errors", "events", "host", "notifier", "units", "locking"}),
    ],
)
def test_commands_for_the_host_import_no_model_and_nothing_large(arguments: list[str], rooms: set[str]) -> None:
    """Neither the modelled machine nor what takes tens of milliseconds to import."""
    found = imported(*arguments)
    assert {name.split(".")[1] for name in found if name.startswith("memhp.")} <= rooms
    assert {"asyncio", "numpy", "rich", "yaml"} & {name.partition(".")[0] for name in found} == set()


def test_the_version_needs_no_parser_of_options_of_list() -> None:
    """`memhp --version` reads the package's metadata and no room of the house."""
    ours = [name for name in imported("--version") if name.startswith("memhp")]
    assert ours == ["memhp", "memhp.cli"]


def test_importing_the_package_imports_no_room() -> None:
    """Public names are fetched when they are used."""
    source = Path(__file__).parents[2] / "src"
    script = f"import sys; sys.path.insert(0, {str(source)!r}); import memhp; print(*[m for m in sys.modules if 'memhp' in m])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["memhp"]


def test_every_public_name_is_found() -> None:
    """The table of homes and the list of names are the same, and dir() knows them."""
    import memhp

    assert [name for name in memhp.__all__ if not hasattr(memhp, name)] == []
    assert set(memhp.__all__) == set(memhp._HOME)
    assert set(memhp.__all__) <= set(dir(memhp))
    with pytest.raises(AttributeError, match="module 'memhp' has no attribute 'nonsense'"):
        _ = memhp.nonsense
