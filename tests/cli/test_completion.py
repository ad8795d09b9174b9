"""Completions say what the commands say, and the shells understand them."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from memhp.cli.completion import completions
from memhp.cli.manual import commands

ROOT = Path(__file__).parents[2]
SHARE = ROOT / "share"
BASH, ZSH, FISH = (SHARE / name for name in completions())


def test_the_files_are_up_to_date() -> None:
    """If this fails: scripts/make-manual."""
    assert {name: (SHARE / name).read_text(encoding="utf-8") for name in completions()} == completions()


def test_the_files_are_installed() -> None:
    """Each to where its shell looks for it."""
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    for name in completions():
        assert installed[f"share/{Path(name).parent}"] == [f"share/{name}"]


def bash(words: list[str]) -> list[str]:
    script = f"source {BASH}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _memhp; echo ${{COMPREPLY[@]}}"
    return run("bash", "-c", script)[0].split()


def zsh(words: list[str]) -> list[str]:
    # Its own _describe shows what it is given; here it prints what begins with the word.
    script = f"""
    words=({" ".join(f"'{word}'" for word in words)}) CURRENT={len(words)} PREFIX='{words[-1]}'
    _describe() {{ local -a all=("${{(@P)@[-1]}}"); print -l -- ${{(M)${{all%%:*}}:#$PREFIX*}} }}
    _files() {{ }}
    source {ZSH}
    """
    return [line for line in run("zsh", "-fc", script) if line]


def fish(words: list[str]) -> list[str]:
    script = f"source {FISH}; complete -C '{' '.join(words)}'"
    return [line.partition("\t")[0] for line in run("fish", "--no-config", "-c", script)]


def run(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.splitlines() or [""]


SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell.__name__), reason=f"needs {shell.__name__}"))
    for shell in (bash, zsh, fish)
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["memhp", "li"], {"list"}),
        (["memhp", "ch"], {"chmem"}),
        (["memhp", "--v"], {"--version"}),
        (["memhp", "list", "--su"], {"--summary"}),
        (["memhp", "offline", "--re"], {"--recover"}),
        (["memhp", "lab", "--virt"], {"--virtio-mem"}),
        (["memhp", "policy", "sh"], {"show"}),
    ],
)
def test_a_shell_completes_commands_and_options(shell: object, words: list[str], found: set[str]) -> None:
    """Of the command that stands there."""
    assert callable(shell)
    assert {word.rstrip("=") for word in shell(words)} == found


@pytest.mark.parametrize("shell", SHELLS)
def test_all_shells_know_the_same(shell: object) -> None:
    """Every command, and of each command every long option that its help has."""
    assert callable(shell)
    table = commands()
    assert {*shell(["memhp", ""])} - {"--help", "--version"} == {command.name for command in table}
    for command in table:
        flags = {flag for one in (command, *command.parts) for option in one.options for flag in option.flags}
        assert {word.rstrip("=") for word in shell(["memhp", command.name, "--"])} == {f for f in flags if f.startswith("--")}
