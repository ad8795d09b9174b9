"""The command line: one module per command, imported when it is asked for.

A command's module has ``configure(parser)``, which adds its arguments, and ``main(options)``, which gives the exit code. A
command that replaces a C tool reads its options as that tool does, without argparse: ``main(arguments, program)``.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import ModuleType

__all__ = ["console", "main"]

COMMANDS = {
    "explain": ("memhp.cli.explain", "say of each block whether it would go offline, and why not"),
    "offline": ("memhp.cli.change", "take memory offline: all that is wanted, or nothing"),
    "online": ("memhp.cli.change", "bring memory online"),
    "plan": ("memhp.cli.plan", "say which blocks are best to change, and what is left then"),
    "watch": ("memhp.cli.watch", "show what happens to a machine's memory while it happens"),
    "policy": ("memhp.cli.policy", "show or set what happens with memory that is added"),
    "doctor": ("memhp.cli.doctor", "say what this machine's kernel can do, what is missing, and what to do about it"),
    "run": ("memhp.cli.run", "play a scenario file on the modelled machine"),
    "explore": ("memhp.cli.explore", "try every interleaving of the threads of a scene"),
    "lab": ("memhp.cli.lab", "ask real kernels, in QEMU guests"),
    "study": ("memhp.cli.study", "what share of a machine can go offline, over workloads and seeds"),
    "conform": ("memhp.cli.conform", "compare the model with real kernels"),
}
"""Each command's module, and what it is for in a few words."""

REPLACEMENTS = {
    "list": ("memhp.cli.listing", "list the memory blocks of a machine, as lsmem does", "lsmem"),
    "chmem": ("memhp.cli.chmem", "bring memory online or take it offline, as chmem does", "chmem"),
}
"""The same for commands that replace a tool, and that tool's name: a link of that name to memhp is that tool."""


def _parser() -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415 - it costs more than a whole `memhp list`

    parser = argparse.ArgumentParser(
        prog="memhp",
        description="Memory hotplug for Linux: see what happens when a machine's memory grows and shrinks, and take part.",
        epilog="Exit codes: 0 everything held, 1 an expectation failed, 2 bad input. "
        "memhp lab: also 3, a real kernel could not be asked. memhp COMMAND --help says more.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, purpose, *_) in {**REPLACEMENTS, **COMMANDS}.items():
        commands.add_parser(name, help=purpose)
    return parser


def console() -> None:
    """Be the program ``memhp``; under the name of a tool that it replaces (by a link), be that tool."""
    try:
        try:
            _console()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:  # before a command could say so itself
        sys.stderr.write("memhp: interrupted\n")
        posix._exit(130)  # noqa: SLF001 - its name
    except BrokenPipeError:
        posix._exit(141)  # noqa: SLF001
    except OSError as error:  # of a help or version that can't be written
        sys.stderr.write(f"memhp: {error.strerror or error}\n")
        sys.stderr.flush()
        posix._exit(1)  # noqa: SLF001


def _console() -> None:
    _open_streams()
    words = sys.argv[1:]
    program = sys.argv[0].rpartition("/")[2]
    tool = next((name for name, (_, _, tool) in REPLACEMENTS.items() if tool == program), None)
    if tool is None:
        if not words or words[0] not in REPLACEMENTS:
            sys.exit(main(words))
        tool, program = words[0], f"memhp {words.pop(0)}"
    code = _module(REPLACEMENTS[tool][0]).main(words, program)
    sys.stderr.flush()
    posix._exit(code)  # noqa: SLF001 - its name; taking the interpreter down costs more than reading 100 blocks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    _open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in REPLACEMENTS:
        replaced: int = _module(REPLACEMENTS[words[0]][0]).main(words[1:], f"memhp {words[0]}")
        return replaced
    if words and words[0] in COMMANDS:
        import argparse  # noqa: PLC0415 - as above

        command = _module(COMMANDS[words[0]][0])
        parser = argparse.ArgumentParser(prog=f"memhp {words[0]}", formatter_class=_formatter)
        command.configure(parser)
        code: int = command.main(parser.parse_args(words[1:]))
        return code
    parser = _parser()
    options = parser.parse_args(words)
    if options.version:
        from memhp import __version__  # noqa: PLC0415 - a command imports what it needs

        print(f"memhp {__version__}")
        return 0
    parser.print_help(sys.stderr)
    return 2


def _open_streams() -> None:
    # Whoever starts memhp may have closed some (`memhp list >&-`): what is opened next must not become standard output.
    for number in range(3):
        try:
            posix.fstat(number)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - as long as the process lives
    if sys.stderr is None:
        sys.stderr = open("/dev/null", "w")  # noqa: SIM115 - likewise


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for each argument; to know the width it imports shutil, and with that all kinds of compression.
    import argparse  # noqa: PLC0415 - as above
    import os  # noqa: PLC0415 - argparse has imported it

    columns = os.environ.get("COLUMNS", "")
    if not columns.isdecimal() or not int(columns):
        try:
            columns = str(os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ else 0)
        except (OSError, ValueError):
            columns = "0"
    return argparse.HelpFormatter(prog, width=(int(columns) or 80) - 2)


def _module(name: str) -> ModuleType:
    return __import__(name, fromlist=["main"])  # importlib would have to be imported
