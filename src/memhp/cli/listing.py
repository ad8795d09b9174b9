"""``memhp list``: the blocks of a machine, as ``lsmem`` of util-linux 2.42 prints them, and in shapes of our own.

The way from the first line to the last reads what the wanted columns need and imports nothing but built-in modules: a test
lists them. What people look at (``--map``, ``--svg``, ``--format json``) lives in :mod:`memhp.cli.picture`.
"""

from __future__ import annotations

import posix
import sys

from memhp.abi.paths import PARAMETERS
from memhp.cli import table
from memhp.cli.getopt_long import NO, OPTIONAL, REQUIRED, Refused, Usage, UsageError
from memhp.host.scan import Scan, ScanError, human, scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["main"]

_COLUMNS = {
    "RANGE": "start and end address of the memory range",
    "SIZE": "size of the memory range",
    "STATE": "online status of the memory range",
    "REMOVABLE": "memory is removable",
    "BLOCK": "memory block number or blocks range",
    "NODE": "numa node of memory",
    "ZONES": "valid zones for the memory range",
    "CONFIGURED": "configuration status of the memory range",
    "MEMMAP-ON-MEMORY": "memmap-on-memory status of the memory range",
}
_DEFAULT = ["RANGE", "SIZE", "STATE", "REMOVABLE", "BLOCK"]
_OF_FIRMWARE = frozenset({"CONFIGURED", "MEMMAP-ON-MEMORY"})
_MOST_COLUMNS = 2 * len(_COLUMNS)
_STATES = {"online": "online", "offline": "offline", "going-offline": "on->off"}
_ZONES = {name.lower(): name for name in ("DMA", "DMA32", "Normal", "Highmem", "Movable", "Device", "None")}
_MOST_ZONES = 8
_OWN = frozenset({"format", "map", "svg"})
_LONG = {
    "all": (NO, "a"),
    "bytes": (NO, "b"),
    "help": (NO, "h"),
    "json": (NO, "J"),
    "noheadings": (NO, "n"),
    "output": (REQUIRED, "o"),
    "output-all": (NO, "output-all"),
    "pairs": (NO, "P"),
    "raw": (NO, "r"),
    "sysroot": (REQUIRED, "s"),
    "split": (REQUIRED, "S"),
    "version": (NO, "V"),
    "summary": (OPTIONAL, "summary"),
    "format": (REQUIRED, "format"),
    "map": (NO, "map"),
    "svg": (REQUIRED, "svg"),
}
_HELP = """
Usage:
 {program} [options]

List the ranges of available memory with their online status.

Options:
 -J, --json           use JSON output format
 -P, --pairs          use key="value" output format
 -a, --all            list each individual memory block
 -b, --bytes          print SIZE in bytes rather than in human readable format
 -n, --noheadings     don't print headings
 -o, --output <list>  output columns
     --output-all     output all columns
 -r, --raw            use raw output format
 -S, --split <list>   split ranges by specified columns
 -s, --sysroot <dir>  use the specified directory as system root
     --summary[=when] print summary information (never,always or only)

     --format json    all that is known of each block, as JSON of memhp's own
     --map            draw the machine: nodes, zones, states, verdicts
     --svg <file>     draw it into a file

 -h, --help           display this help
 -V, --version        display version

Available output columns:
{columns}

All but the options in the middle is as lsmem(1) of util-linux 2.42 has it.
"""


class _Options:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.columns: list[str] = []
        self.values: dict[str, str] = {}
        self.table = self.summary = True


def main(arguments: Sequence[str], program: str = "memhp list") -> int:
    """Run the command; gives the exit code, 0 or 1."""
    try:
        options = _Options()
        text = _parse(options, arguments, program)
        sys.stdout.write(_listing(options) if text is None else text)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(program, f"{error}\nTry '{program} --help' for more information." if error.advice else str(error))
    except ScanError as error:
        return _fail(program, f"{error}\n{error.hint}" if error.hint else str(error))
    except BrokenPipeError:
        posix.dup2(posix.open("/dev/null", posix.O_WRONLY), 1)  # what is still buffered has nowhere to go
        return 141  # as a shell sees the death by SIGPIPE that a C program dies
    except OSError as error:
        return _fail(program, f"write error: {error.strerror}")
    return 0


def _fail(program: str, text: str) -> int:
    if text:
        sys.stderr.write(f"{program}: {text}\n")
    return 1


def _parse(options: _Options, arguments: Sequence[str], program: str) -> str | None:
    # The text to print instead of a listing, or None.
    usage = Usage("abhJno:PrS:s:V", _LONG, (("J", "P", "r", "format", "map", "svg"), ("S", "a")), _OWN)
    for option, argument in usage.read(arguments):
        if option == "h":
            return _help(program)
        if option == "V":
            return _version(program)
        _set(options, option, argument)
    if usage.rest:
        raise UsageError("bad usage")
    if not options.table and not options.summary:
        raise Refused("options --{raw,json,pairs} and --summary=only are mutually exclusive")
    return None


def _set(options: _Options, option: str, argument: str) -> None:
    if option == "output-all":
        options.columns = list(_COLUMNS)
    elif option == "summary":
        if argument in {"", "only"}:
            options.table = False
        elif argument in {"never", "always"}:
            options.summary = argument == "always"
        else:
            raise Refused("unsupported --summary argument")
    elif option == "format" and argument != "json":
        raise Refused(f"unsupported --format argument: {argument}; there is json")
    elif option in {"o", "s", "S", "format", "svg"}:
        options.values[option] = argument
    else:
        options.flags.add(option)
        if option in "JPr":
            options.summary = False


def _listing(options: _Options) -> str:
    root = options.values.get("s", "").rstrip("/")
    if "format" in options.values or "svg" in options.values or "map" in options.flags:
        return _picture(root, options)
    columns = _wanted(options)
    split = _splits(options, columns)
    if not options.table:
        return _summary(options, scan(root, removable=False), root)
    needed = {*columns, *split}
    found = scan(root, removable="REMOVABLE" in needed, nodes="NODE" in needed, zones="ZONES" in needed)
    text = _table(options, columns, split, found)
    return f"{text}\n{_summary(options, found, root)}" if options.summary else text


def _picture(root: str, options: _Options) -> str:
    from memhp.cli.picture import picture  # noqa: PLC0415 - only where somebody wants one
    from memhp.errors import MemhpError  # noqa: PLC0415 - likewise

    try:
        return picture(root, options.values.get("svg"), as_json="format" in options.values)
    except MemhpError as error:
        raise ScanError(str(error)) from error
    except OSError as error:
        raise ScanError(f"cannot write {options.values.get('svg')}: {error.strerror}") from error


def _wanted(options: _Options) -> list[str]:
    columns = options.columns or list(_DEFAULT)
    if not options.table:
        return columns
    output = options.values.get("o")
    if output is None and (variable := posix.environ.get(b"LSMEM_COLUMNS")) is not None:
        output = variable.decode("utf-8", "replace")
    if output is None:
        return columns
    columns, more = (columns, output[1:]) if output[:1] == "+" else ([], output)
    return [*columns, *_named(more, _MOST_COLUMNS - len(columns))]


def _splits(options: _Options, columns: list[str]) -> frozenset[str]:
    split = options.values.get("S")
    if split is None or not options.table:
        return frozenset(columns)
    return frozenset() if split.lower() == "none" else frozenset(_named(split, len(_COLUMNS)))


def _named(names: str, most: int) -> list[str]:
    # As lsmem: what is empty, or too much, fails without a word; the message has the rest of the list; a comma at the end belongs
    # to the last name.
    found: list[str] = []
    while names:
        word, comma, rest = names.partition(",")
        if (not word and rest) or len(found) == most:
            raise Refused("")
        if word.upper() not in _COLUMNS or (comma and not rest):
            raise Refused(f"unknown column: {names}")
        found.append(word.upper())
        names = rest
    if not found:
        raise Refused("")
    return found


def _table(options: _Options, columns: list[str], split: frozenset[str], found: Scan) -> str:
    starts, counts = _merge(found, split, every="a" in options.flags)
    if found.configured is None:
        columns = [name for name in columns if name not in _OF_FIRMWARE]
    drawn = [_column(name, found, starts, counts, in_bytes="b" in options.flags) for name in columns]
    headings = "n" not in options.flags
    if not drawn:
        return ""
    if "J" in options.flags:
        return table.json("memory", drawn)
    if "P" in options.flags:
        return table.pairs(drawn)
    if "r" in options.flags:
        return table.raw(drawn, headings=headings)
    return table.aligned(drawn, headings=headings, terminal=_terminal())


def _terminal() -> int:
    if not sys.stdout.isatty():
        return 0
    try:
        width = posix.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        width = 0
    if width <= 0:
        variable = posix.environ.get(b"COLUMNS", b"")
        width = int(variable) if variable.isdigit() else 0
    return width or 80


def _merge(found: Scan, split: frozenset[str], *, every: bool) -> tuple[Sequence[int], list[int]]:
    # Where each printed line begins, and how many blocks it has.
    numbers = found.numbers
    if every:
        return range(len(numbers)), [1] * len(numbers)
    keys = [column for name, column in _keys(found).items() if name in split and column is not None]
    starts: list[int] = []
    counts: list[int] = []
    following, last = -1, None
    for index, (number, *key) in enumerate(zip(numbers, *keys, strict=True)):
        if number == following and key == last:
            counts[-1] += 1
        else:
            starts.append(index)
            counts.append(1)
            # Zones that lsmem doesn't know never equal each other.
            last = None if "ZONES" in split and any("Unknown" in str(part) for part in key) else key
        following = number + 1
    return starts, counts


def _keys(found: Scan) -> dict[str, Sequence[object] | None]:
    return {
        "STATE": _each(_state, found.states),
        "REMOVABLE": _each(_is_removable, found.removable),
        "NODE": found.nodes,
        "ZONES": None if found.zones is None else _each(_zones, found.zones),
        "CONFIGURED": found.configured,
        "MEMMAP-ON-MEMORY": found.memmap_on_memory,
    }


def _each(meaning: Callable[[str | None], T], texts: Sequence[str | None]) -> list[T]:
    # Thousands of files say one of a few things.
    known = {text: meaning(text) for text in set(texts)}
    return [known[text] for text in texts]


def _state(text: str | None) -> str:
    return _STATES.get((text or "").removesuffix("\n"), "?")


def _is_online(text: str | None) -> bool:
    return _state(text) == "online"


def _is_removable(text: str | None) -> bool:
    # As scanf("%d") reads it: what stands behind the number doesn't matter.
    if text in {"1\n", "0\n"}:
        return text == "1\n"
    digits = (text or "").lstrip()
    for end, sign in enumerate(digits):
        if not (sign.isascii() and sign.isdigit()):
            digits = digits[:end]
            break
    return digits.lstrip("0") == "1"


def _zones(text: str | None) -> str:
    if not text:
        return ""
    words = [word for word in text.removesuffix("\n").split(" ") if word]
    return "/".join([_ZONES.get(word.lower(), "Unknown") for word in words[:_MOST_ZONES]])


def _column(name: str, found: Scan, starts: Sequence[int], counts: list[int], *, in_bytes: bool) -> table.Column:
    size, numbers = found.block_size, found.numbers
    if name == "RANGE":
        ends = ((numbers[at] * size, (numbers[at] + count) * size - 1) for at, count in zip(starts, counts, strict=True))
        return table.Column(name, ["0x%016x-0x%016x" % pair for pair in ends], right=False)  # noqa: UP031 - the fastest way
    if name == "SIZE":
        texts = {count: str(count * size) if in_bytes else human(count * size) for count in set(counts)}
        return table.Column(name, [texts[count] for count in counts], hint=5, kind=table.NUMBER if in_bytes else table.STRING)
    if name == "BLOCK":
        firsts = [numbers[at] for at in starts]
        cells = [str(n) if count == 1 else f"{n}-{n + count - 1}" for n, count in zip(firsts, counts, strict=True)]
        return table.Column(name, cells)
    kind = {"NODE": table.NUMBER, "REMOVABLE": table.TRUTH}.get(name, table.STRING)
    return table.Column(name, _cells(name, found, starts), kind=kind)


def _cells(name: str, found: Scan, starts: Sequence[int]) -> list[str]:
    if name == "STATE":
        return _each(_state, _picked(found.states, starts))
    if name == "REMOVABLE":
        online = _each(_is_online, _picked(found.states, starts))
        flags = _each(_is_removable, _picked(found.removable, starts))
        return [_yes(flag) if there else "" for flag, there in zip(flags, online, strict=True)]
    if name == "NODE":
        return [""] * len(starts) if found.nodes is None else [str(node) for node in _picked(found.nodes, starts)]
    if name == "ZONES":
        return [""] * len(starts) if found.zones is None else _each(_zones, _picked(found.zones, starts))
    column = (found.configured if name == "CONFIGURED" else found.memmap_on_memory) or []
    return [_yes(flag) for flag in _picked(column, starts)]


def _picked(column: list[T], starts: Sequence[int]) -> list[T]:
    return column if len(column) == len(starts) else [column[at] for at in starts]


def _yes(flag: bool) -> str:  # noqa: FBT001 - it is what is translated
    return "yes" if flag else "no"


def _summary(options: _Options, found: Scan, root: str) -> str:
    online = found.block_size * sum(_each(_is_online, found.states))
    offline = found.block_size * len(found.numbers) - online
    in_bytes = "b" in options.flags
    sizes = [("Memory block size:", found.block_size), ("Total online memory:", online), ("Total offline memory:", offline)]
    lines = [(name, str(size) if in_bytes else human(size)) for name, size in sizes]
    mode = _memmap_mode(root)
    if mode:
        lines.append(("Memmap on memory parameter:", mode))
    width = 15 if in_bytes else 5
    return "".join(f"{name:<32} {value:>{width}}\n" for name, value in lines)


def _memmap_mode(root: str) -> str:
    try:
        descriptor = posix.open(f"{root}{PARAMETERS}/memmap_on_memory", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return ""
    try:
        text = posix.read(descriptor, 7)
    except OSError:
        text = b""
    posix.close(descriptor)
    modes = ((b"Y", "yes"), (b"N", "no"), (b"force", "force"))
    return next((word for begin, word in modes if text.startswith(begin)), "")


def _help(program: str) -> str:
    columns = "\n".join(f" {name:>10}  {text}" for name, text in _COLUMNS.items())
    return _HELP.format(program=program, columns=columns)


def _version(program: str) -> str:
    from memhp import __version__  # noqa: PLC0415 - it costs more than a listing

    return f"{program} from memhp {__version__}, as lsmem from util-linux 2.42\n"
