"""What this machine's kernel can do with memory, what is missing, why, and what to do about it.

Each check looks at the thing itself (a file that is there and can be opened) rather than at a version or a configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from memhp.abi.btf import BTF
from memhp.abi.paths import MEMORY, NODE, PARAMETERS
from memhp.abi.tree import Tree
from memhp.errors import MemhpError
from memhp.host.feeds import NetlinkFeed
from memhp.host.inventory import Host
from memhp.host.policy import report

__all__ = ["Finding", "examine"]

OK, MISSING, NOTE = "ok", "missing", "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        verdict: ok, missing, or note (nothing is wrong, but it matters).
        found: what holds.
        remedy: what to do, '' if there is nothing to do.
        needed_for: the commands that need it, '' for all.
    """

    subject: str
    verdict: str
    found: str
    remedy: str = ""
    needed_for: str = ""


def examine(tree: Tree | None = None) -> list[Finding]:
    """Look at everything; never raises. With a copy of a machine's files, what only a live machine has is left out."""
    host = Host(tree)
    live = tree is None
    findings = [_blocks(host)]
    if findings[0].verdict == MISSING:
        return findings
    checks: list[Callable[[Host], Finding]] = [_nodes, _movable, _holes, _policy, _online_policy, _memmap, _crash]
    findings += [check(host) for check in checks]
    if live:
        findings += [_writable(), *_page_files(), _tracing(), _types(), _uevents()]
    return findings


def _blocks(host: Host) -> Finding:
    try:
        inventory = host.inventory()
    except MemhpError as error:
        return Finding("memory blocks", MISSING, str(error), "a kernel with CONFIG_MEMORY_HOTPLUG, and /sys mounted")
    offline = len(inventory.blocks) - sum(block.online for block in inventory.blocks)
    size = inventory.block_size >> 20
    return Finding("memory blocks", OK, f"{len(inventory.blocks)} of {size} MiB, {offline or 'none'} offline")


def _nodes(host: Host) -> Finding:
    nodes = host.nodes()
    if nodes:
        return Finding("NUMA", OK, f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}")
    return Finding("NUMA", NOTE, f"no {NODE}: a kernel without CONFIG_NUMA, so nothing can be said by node")


def _movable(host: Host) -> Finding:
    zones = [block.zone for block in host.blocks(zones=True)]
    movable = zones.count("Movable")
    if movable:
        return Finding("ZONE_MOVABLE", OK, f"{movable} of {len(zones)} blocks are in it")
    remedy = "online new memory with online_movable, or boot with movable_node or kernelcore=SIZE"
    return Finding("ZONE_MOVABLE", NOTE, "no block is in it, so any block may hold pages that can't move", remedy)


def _holes(host: Host) -> Finding:
    stuck = [f"memory{block.id}" for block in host.blocks(zones=True) if block.verdict[0] == "no"]
    if not stuck:
        return Finding("blocks in several zones", OK, "none")
    shown = ", ".join(stuck[:8]) + (f" and {len(stuck) - 8} more" if len(stuck) > 8 else "")
    return Finding("blocks in several zones", NOTE, f"{shown} can never go offline")


def _policy(host: Host) -> Finding:
    try:
        found = report(host)
    except MemhpError as error:
        return Finding("new memory", NOTE, str(error))
    udev = [one for one in found.others if one.who == "udev"]
    by_kernel = found.policy.auto_online_blocks not in {None, "offline"}
    if by_kernel and udev and found.has_udev:
        remedy = f"remove {udev[0].where}, or set auto_online_blocks to offline (memhp policy set)"
        return Finding("new memory", NOTE, f"kernel and udev both bring it online; {found.winner}", remedy)
    return Finding("new memory", OK, found.winner)


def _online_policy(host: Host) -> Finding:
    if host.policy().online_policy is None:
        return Finding("choice of zone", NOTE, f"no {PARAMETERS}/online_policy", "Linux 5.15 or newer has auto-movable")
    return Finding("choice of zone", OK, str(host.policy().online_policy))


def _memmap(host: Host) -> Finding:
    mode = host.policy().memmap_on_memory
    if mode in {"Y", "force"}:
        return Finding("memmap on memory", OK, "new memory holds its own page structures")
    remedy = "boot with memory_hotplug.memmap_on_memory=Y, where the memory comes in whole blocks"
    return Finding("memmap on memory", NOTE, "1/64 of new memory is taken from the memory that is there", remedy)


def _crash(host: Host) -> Finding:
    path = f"{MEMORY}/crash_hotplug"
    try:
        if host.tree.read(path).strip() == "1":
            return Finding("kdump", OK, "the kernel keeps the crash kernel's list of memory up to date")
    except OSError:
        pass
    remedy = "if kdump is used, reload it after each change (kexec-tools has udev rules for that)"
    return Finding("kdump", NOTE, "a loaded crash kernel does not hear of memory that comes or goes", remedy)


def _writable() -> Finding:
    where = f"{MEMORY}/memory{min((block.id for block in Host().blocks()), default=0)}/state"
    if os.access(where, os.W_OK):
        return Finding("changing memory", OK, "the files can be written to")
    if os.geteuid() != 0:
        return Finding("changing memory", MISSING, "you are not root", "sudo", "chmem, online, offline, policy set")
    remedy = "leave the container, or mount /sys for writing"
    return Finding("changing memory", MISSING, "/sys is read-only here", remedy, "chmem, online, offline, policy set")


_PAGE_FILES = (
    ("page flags", "/proc/kpageflags", "be root; the kernel needs CONFIG_PROC_PAGE_MONITOR", "explain, plan"),
    ("page counts", "/proc/kpagecount", "be root; the kernel needs CONFIG_PROC_PAGE_MONITOR", "explain, plan"),
    ("pages by cgroup", "/proc/kpagecgroup", "be root; the kernel needs CONFIG_MEMCG", "explain, for names of cgroups"),
    (
        "who allocated pages",
        "/sys/kernel/debug/page_owner",
        "mount debugfs, and boot with page_owner=on; the kernel needs CONFIG_PAGE_OWNER",
        "explain, for names of owners",
    ),
)


def _page_files() -> list[Finding]:
    found = []
    for subject, path, remedy, needed_for in _PAGE_FILES:
        reason = _unreadable(path)
        verdict = OK if not reason else NOTE if "for names" in needed_for else MISSING
        found.append(Finding(subject, verdict, reason or path, remedy if reason else "", needed_for if reason else ""))
    return found


def _unreadable(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {error.strerror}"
    os.close(descriptor)
    return ""


def _tracing() -> Finding:
    places = ("/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/tracing/kprobe_events")
    if any(os.access(place, os.W_OK) for place in places):
        return Finding("kprobes", OK, "the kernel's notifier calls can be heard")
    remedy = "be root; mount -t tracefs tracefs /sys/kernel/tracing; the kernel needs CONFIG_KPROBE_EVENTS"
    return Finding("kprobes", MISSING, "the kernel's notifier calls can't be heard", remedy, "watch --trace")


def _types() -> Finding:
    if not _unreadable(BTF):
        return Finding("the kernel's types", OK, BTF)
    return Finding("the kernel's types", MISSING, _unreadable(BTF), "the kernel needs CONFIG_DEBUG_INFO_BTF", "watch --trace")


def _uevents() -> Finding:
    try:
        NetlinkFeed().close()
    except MemhpError as error:
        return Finding("uevents", MISSING, str(error), "a kernel with CONFIG_NET, outside of a sandbox", "watch")
    return Finding("uevents", OK, "the kernel's socket can be opened")
