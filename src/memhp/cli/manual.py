"""Man pages, made from what the commands themselves say of their options.

``scripts/make-manual`` writes them; a test sees to it that they are up to date. No library reads both argparse and the help of
the commands that replace C tools, and what is left for it to do is a page of code.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module

from memhp.cli import COMMANDS, REPLACEMENTS

__all__ = ["Command", "Option", "commands", "man_pages"]

_HELP_LINE = re.compile(r"^ +(?:(-\w), |    )(--[\w-]+)(\[=\w+\])?(?: (<\w+>|json))? +(.*)$")


@dataclass(frozen=True, slots=True)
class Option:
    """An option as its command's help has it; ``value`` is what stands behind it, '' for nothing."""

    flags: tuple[str, ...]
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or a part of one (``lab boot``)."""

    name: str
    purpose: str
    description: str
    operands: tuple[tuple[str, str], ...] = ()
    options: tuple[Option, ...] = ()
    parts: tuple[Command, ...] = field(default=())

    @property
    def short_name(self) -> str:
        """The last word of its name."""
        return self.name.rpartition(" ")[2]


def commands() -> list[Command]:
    """Give all commands, in the order of memhp's own help."""
    replaced = [_of_help(name, purpose, import_module(module)) for name, (module, purpose, _) in REPLACEMENTS.items()]
    return [*replaced, *(_of_parser(name, purpose, _configured(module)) for name, (module, purpose) in COMMANDS.items())]


def _configured(module: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memhp")
    import_module(module).configure(parser)
    return parser


def _of_help(name: str, purpose: str, module: object) -> Command:
    found = []
    text: str = vars(module)["_HELP"]
    for line in text.splitlines():
        match = _HELP_LINE.match(line)
        if match:
            short, long, optional, value, meaning = match.groups()
            flags = (short, long) if short else (long,)
            found.append(Option(flags, (value or optional or "").strip("<>"), meaning.strip()))
    synopsis = text.split("\n\n")[1].strip()
    return Command(name, purpose, synopsis, options=tuple(found))


def _of_parser(name: str, purpose: str, parser: argparse.ArgumentParser) -> Command:
    operands, options, parts = [], [], []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - likewise
            purposes = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001 - likewise
            parts += [_of_parser(f"{name} {part}", purposes.get(part, ""), sub) for part, sub in action.choices.items()]
        elif action.option_strings:
            value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
            options.append(Option(tuple(action.option_strings), value, action.help or ""))
        else:
            operands.append((str(action.metavar or action.dest), action.help or ""))
    return Command(name, purpose, parser.description or "", tuple(operands), tuple(options), tuple(parts))


def man_pages() -> dict[str, str]:
    """Give the text of each page by the name of its file: ``memhp.1``, and one for each command."""
    table = commands()
    pages = {f"memhp-{command.name}.1": _page(command) for command in table}
    return {"memhp.1": _first_page(table), **pages}


def _first_page(table: list[Command]) -> str:
    lines = [_head("memhp", "memory hotplug for Linux"), ".SH SYNOPSIS", ".B memhp", ".I COMMAND", "[\\fIOPTIONS\\fR]"]
    lines += [".SH DESCRIPTION", "See what happens when a machine's memory grows and shrinks, and take part."]
    lines += [".SH COMMANDS"]
    for command in table:
        lines += [".TP", f".BR memhp\\-{_escaped(command.name)} (1)", _escaped(command.purpose)]
    return _joined(lines)


def _page(command: Command) -> str:
    title = f"memhp-{command.name}"
    lines = [_head(title, command.purpose), ".SH SYNOPSIS", *_synopsis(command)]
    for part in command.parts:
        lines += [".br", *_synopsis(part)]
    lines += [".SH DESCRIPTION", _escaped(command.description), ".SH OPTIONS", *_details(command)]
    for part in command.parts:
        lines += [f".SH MEMHP {_escaped(part.name.upper())}", _escaped(part.description or part.purpose), *_details(part)]
    lines += [".SH SEE ALSO", ".BR memhp (1)"]
    return _joined(lines)


def _head(title: str, purpose: str) -> str:
    return f'.TH {_escaped(title.upper())} 1 "" memhp\n.SH NAME\n{_escaped(title)} \\- {_escaped(purpose)}'


def _synopsis(command: Command) -> Iterator[str]:
    yield f".B memhp {_escaped(command.name)}"
    yield "[\\fIOPTIONS\\fR]"
    for operand, _ in command.operands:
        yield f".I {_escaped(operand)}"


def _details(command: Command) -> Iterator[str]:
    for operand, text in command.operands:
        yield f".TP\n.I {_escaped(operand)}\n{_escaped(text)}"
    for option in command.options:
        flags = ", ".join(f"\\fB{_escaped(flag)}\\fR" for flag in option.flags)
        value = f" \\fI{_escaped(option.value)}\\fR" if option.value else ""
        yield f".TP\n{flags}{value}\n{_escaped(option.text)}"


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("%%", "%")
    escaped = "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in escaped)
    lines = [line.strip() for line in escaped.splitlines() if line.strip()]
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def _joined(lines: list[str]) -> str:
    return "\n".join(line for line in lines if line) + "\n"
