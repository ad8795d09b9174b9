"""What happens with memory that is added, and who decides it: the kernel, udev rules, the kernel's command line, daxctl.

The kernel is asked first: unless its ``auto_online_blocks`` says offline, a new block is online before anybody hears of it, and
a rule of udev that writes ``online`` to it comes too late (EINVAL, fact 5.5). Otherwise the first rule that matches wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memhp.abi.paths import MEMORY, PARAMETERS
from memhp.abi.tree import Tree
from memhp.errors import HostError, InvalidInput
from memhp.host.inventory import Host, Policy

__all__ = ["SETTINGS", "Onliner", "PolicyReport", "report", "set_policy"]

SETTINGS = {
    "auto_online_blocks": (f"{MEMORY}/auto_online_blocks", ("offline", "online", "online_kernel", "online_movable")),
    "online_policy": (f"{PARAMETERS}/online_policy", ("contig-zones", "auto-movable")),
    "auto_movable_ratio": (f"{PARAMETERS}/auto_movable_ratio", ()),
    "auto_movable_numa_aware": (f"{PARAMETERS}/auto_movable_numa_aware", ("Y", "N", "y", "n", "1", "0", "on", "off")),
}
"""What can be set: its file, and the words that it takes, () for a number."""

_RULE_PLACES = (
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
)
"""Where udev looks, the first first: a file hides those of its name in later places (udev(7))."""

_DAX_PLACES = ("/etc/daxctl.conf", "/etc/daxctl.conf.d", "/etc/ndctl.conf.d")
_PARAMETER = re.compile(r"memhp_default_state=\S*|movable_node\b|movablecore=\S*|kernelcore=\S*|memory_hotplug\.\S+")
_PAIR = re.compile(r'([A-Z]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|-=|:=|=)\s*"((?:[^"\\]|\\.)*)"')
_WRITES = frozenset({"=", "+=", ":="})


@dataclass(frozen=True, slots=True)
class Onliner:
    """Somebody who brings new memory online.

    Attributes:
        who: udev, daxctl, or command line.
        where: file and line.
        what: what it says.
    """

    who: str
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """The policy and everybody who has a say.

    Attributes:
        policy: what the kernel does now.
        others: who else there is, in the order in which they would be asked.
        has_udev: whether udevd runs, without which rules do nothing.
        winner: who decides, in a sentence.
    """

    policy: Policy
    others: tuple[Onliner, ...]
    has_udev: bool
    winner: str


def report(host: Host) -> PolicyReport:
    """Read the policy, and who else onlines memory on this machine.

    Raises:
        NoMemoryBlocks: the machine has no memory blocks.
    """
    policy = host.policy()
    _ = host.block_size  # a machine without memory blocks has no policy
    tree = host.tree
    rules = tuple(_udev_rules(tree))
    others = (*_command_line(tree), *rules, *_daxctl(tree))
    has_udev = tree.exists("/run/udev/control")
    return PolicyReport(policy, others, has_udev, _winner(policy, rules, has_udev=has_udev))


def _winner(policy: Policy, rules: tuple[Onliner, ...], *, has_udev: bool) -> str:
    default = policy.auto_online_blocks
    late = f"; {rules[0].where} comes too late" if rules and has_udev else ""
    if default is None:
        return "not known: this kernel doesn't say whether it brings new memory online"
    if default != "offline":
        return f"the kernel: new memory is online at once, {_zone(policy)}{late}"
    if rules and has_udev:
        return f"udev: {rules[0].where} brings new memory online"
    if rules:
        return f"nobody: {rules[0].where} would, but udevd does not run here; new memory stays offline"
    return "nobody: new memory stays offline until somebody brings it online"


def _zone(policy: Policy) -> str:
    chosen = {"online_kernel": "in a kernel zone", "online_movable": "in ZONE_MOVABLE"}.get(policy.auto_online_blocks or "")
    return chosen or (f"where {policy.online_policy} puts it" if policy.online_policy else "where the kernel puts it")


def _command_line(tree: Tree) -> Iterator[Onliner]:
    for word in _PARAMETER.findall(_text(tree, "/proc/cmdline")):
        yield Onliner("command line", "/proc/cmdline", word)


def _udev_rules(tree: Tree) -> Iterator[Onliner]:
    files: dict[str, str] = {}
    for place in _RULE_PLACES:
        for name in _names(tree, place):
            if name.endswith(".rules"):
                files.setdefault(name, f"{place}/{name}")
    for name in sorted(files):
        yield from _rules_in(files[name], _text(tree, files[name]))


def _rules_in(path: str, text: str) -> Iterator[Onliner]:
    # Rules for memory may stand between `SUBSYSTEM!="memory", GOTO="end"` and `LABEL="end"`, as on RHEL.
    end = ""
    for number, rule in _lines(text):
        pairs = _PAIR.findall(rule)
        values = {(key, op): value for key, _, op, value in pairs}
        if values.get(("SUBSYSTEM", "!=")) == "memory":
            end = values.get(("GOTO", "="), "")
        if end and values.get(("LABEL", "=")) == end:
            end = ""
        about_memory = bool(end) or "memory" in values.get(("SUBSYSTEM", "=="), "").split("|")
        if about_memory and any(_onlines(*pair) for pair in pairs):
            yield Onliner("udev", f"{path}:{number}", rule)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    continued, begin = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begin = begin if continued else number
        if line.endswith("\\"):
            continued += line[:-1]
            continue
        rule, continued = (continued + line).strip(), ""
        if rule and not rule.startswith("#"):
            yield begin, rule


def _onlines(key: str, attribute: str, op: str, value: str) -> bool:
    if key == "ATTR":
        return attribute in {"state", "online"} and op in _WRITES and value.strip() in _ONLINE
    return key == "RUN" and re.search(r"online|chmem", value) is not None


_ONLINE = frozenset({"online", "online_kernel", "online_movable", "1"})


def _daxctl(tree: Tree) -> Iterator[Onliner]:
    for place in _DAX_PLACES:
        names = [f"{place}/{name}" for name in _names(tree, place) if name.endswith(".conf")]
        for path in names or [place]:
            for number, line in enumerate(_text(tree, path).splitlines(), 1):
                if re.match(r"\s*(online|movable|mode)\s*=", line):
                    yield Onliner("daxctl", f"{path}:{number}", line.strip())


def _names(tree: Tree, directory: str) -> list[str]:
    try:
        return tree.list(directory)
    except OSError:
        return []


def _text(tree: Tree, path: str) -> str:
    try:
        return tree.read(path)
    except OSError:
        return ""


def set_policy(tree: Tree, wanted: Mapping[str, str]) -> None:
    """Set what happens with new memory, all of it or nothing; it holds until the next boot.

    Args:
        tree: the machine; it must be writable.
        wanted: values by the names in ``SETTINGS``.

    Raises:
        InvalidInput: no such setting, or a value that it doesn't take. The kernel would take ``foo`` for a bool; this doesn't.
        HostError: the kernel has no such file or refused; what was set before is as it was again.
    """
    for name, value in wanted.items():
        _check(name, value)
    before: list[tuple[str, str]] = []
    for name, value in wanted.items():
        path = SETTINGS[name][0]
        try:
            was = tree.read(path).strip()
            tree.write(path, value)
        except OSError as error:
            left = [undone for undone in (_undo(tree, *one) for one in reversed(before)) if undone]
            raise _refused(name, path, value, error, left) from error
        before.append((path, was))


def preview_policy(tree: Tree, wanted: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Say what each setting is now, and what :func:`set_policy` would make of it; nothing is written.

    Raises:
        InvalidInput: no such setting, or a value that it doesn't take.
        HostError: the kernel has no such file.
    """
    found = {}
    for name, value in wanted.items():
        _check(name, value)
    for name, value in wanted.items():
        path = SETTINGS[name][0]
        try:
            found[name] = tree.read(path).strip(), value
        except OSError as error:
            raise _refused(name, path, value, error, []) from error
    return found


def _check(name: str, value: str) -> None:
    if name not in SETTINGS:
        raise InvalidInput(name, "policy", f"one of {', '.join(SETTINGS)}")
    words = SETTINGS[name][1]
    if words and value not in words:
        raise InvalidInput(value, name, f"one of {', '.join(words)}")
    if name == "auto_movable_ratio" and not (value.isascii() and value.isdigit() and int(value) < 1 << 32):
        raise InvalidInput(value, name, "a percentage of at most 2^32 - 1, such as 301")


def _undo(tree: Tree, path: str, was: str) -> str:
    try:
        tree.write(path, was)
    except OSError as error:
        return f"{path} could not be set back to {was} ({error.strerror})"
    return ""


def _refused(name: str, path: str, value: str, error: OSError, left: list[str]) -> HostError:
    hint = {1: "be root", 13: "be root", 30: "/sys is read-only here, as in a container"}.get(error.errno or 0, "")
    if error.errno == 2:
        hint = "this kernel has no such setting (online_policy and the others came with 5.15)"
    holds = "; ".join(left) if left else "nothing is changed"
    return HostError(path, f"{name} can't be set to {value}: {error.strerror}; {holds}", errno=error.errno or 0, hint=hint)
