"""Completion of commands and options for bash, zsh and fish, made from what the commands themselves say of their options.

``scripts/make-manual`` writes the files, as the man pages; a test sees to it that they are up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from shlex import quote

from memhp.cli.manual import Command, Option, commands

__all__ = ["completions"]

_MADE = "made by scripts/make-manual"
_ALWAYS = (Option(("--help",), "", "show help and exit"), Option(("--version",), "", "print the version and exit"))


def completions() -> dict[str, str]:
    """Give the text of each file by its path below ``share``. What is no option is completed as a file."""
    table = commands()
    return {
        "bash-completion/completions/memhp": _lines(_bash(table)),
        "zsh/site-functions/_memhp": _lines(_zsh(table)),
        "fish/vendor_completions.d/memhp.fish": _lines(_fish(table)),
    }


def _lines(lines: Iterator[str]) -> str:
    return "\n".join([*lines, ""])


def _options(command: Command) -> list[Option]:
    # Its own and those of its parts, each flag once.
    found: dict[str, Option] = {}
    for one in (command, *command.parts):
        for option in one.options:
            found.setdefault(option.flags[-1], option)
    return list(found.values())


def _bash(table: list[Command]) -> Iterator[str]:
    names = " ".join(command.name for command in table)
    yield f"# Completion of memhp for bash; {_MADE}."
    yield "_memhp() {"
    yield "  local word=${COMP_WORDS[COMP_CWORD]} words="
    yield f"  [ $COMP_CWORD = 1 ] && words='{names} --help --version'"
    yield "  [ $COMP_CWORD -gt 1 ] && case ${COMP_WORDS[1]} in"
    for command in table:
        long = [flag for option in _options(command) for flag in option.flags if flag.startswith("--")]
        yield f"    {command.name}) words='{' '.join([*long, *(part.short_name for part in command.parts)])}' ;;"
    yield "  esac"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o default -F _memhp memhp"


def _zsh(table: list[Command]) -> Iterator[str]:
    yield "#compdef memhp"
    yield f"# Completion of memhp for zsh; {_MADE}."
    yield "local -a parts flags"
    yield "if (( CURRENT == 2 )); then"
    yield f"  parts=({_described((command.name, command.purpose) for command in table)})"
    yield f"  flags=({_described((flag, option.text) for option in _ALWAYS for flag in option.flags)})"
    yield "else"
    yield "  case $words[2] in"
    for command in table:
        yield f"    {command.name})"
        if command.parts:
            yield f"      parts=({_described((part.short_name, part.purpose) for part in command.parts)})"
        yield f"      flags=({_described((flag, option.text) for option in _options(command) for flag in option.flags)})"
        yield "      ;;"
    yield "  esac"
    yield "fi"
    yield "(( $#parts )) && _describe -t commands command parts"
    yield "[[ $PREFIX = -* ]] && _describe -o -t options option flags"
    yield "(( CURRENT == 2 )) || _files"


def _described(named: Iterable[tuple[str, str]]) -> str:
    return " ".join(quote(f"{name}:{_plain(text)}") for name, text in named)


def _fish(table: list[Command]) -> Iterator[str]:
    yield f"# Completion of memhp for fish; {_MADE}."
    yield "function __fish_memhp_first; test (count (commandline -opc)) -eq 1; end"
    yield "function __fish_memhp_in"
    yield "  set -l words (commandline -opc)"
    yield "  test (count $words) -gt 1; and test $words[2] = $argv[1]"
    yield "end"
    for command in table:
        yield f"complete -c memhp -f -n __fish_memhp_first -a {command.name} -d {quote(command.purpose)}"
    for option in _ALWAYS:
        yield f"complete -c memhp -f -n __fish_memhp_first{_fish_option(option)}"
    for command in table:
        where = f"complete -c memhp -n '__fish_memhp_in {command.name}'"
        for part in command.parts:
            yield f"{where} -a {part.short_name} -d {quote(_plain(part.purpose))}"
        for option in _options(command):
            yield f"{where}{_fish_option(option)}"


def _fish_option(option: Option) -> str:
    flags = "".join(f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in option.flags)
    needed = " -r" if option.value and not option.value.startswith("[") else ""
    return f"{flags}{needed} -d {quote(_plain(option.text))}"


def _plain(text: str) -> str:
    return " ".join(text.replace("%%", "%").split())
