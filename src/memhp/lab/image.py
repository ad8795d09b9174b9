"""What the guest's kernel unpacks as its root: busybox, a small Python, the agent, and modules."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from memhp.abi import state
from memhp.errors import LabError
from memhp.lab import agent
from memhp.lab.cpio import Entry, device, directory, file, link, newc
from memhp.lab.kernels import Kernel
from memhp.lab.modules import module_data, with_needed

__all__ = ["INJECTORS", "initramfs"]

INJECTORS = ("notifier-error-inject", "memory-notifier-error-inject")
"""The modules that answer a GOING action with an errno; the first is needed by the second."""

_PACKAGES = {"encodings", "json", "collections", "importlib", "re"}
_EXTENSIONS = ("termios", "_json")
_LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")
_LOADER = "ld-linux-x86-64.so.2"
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t debugfs debugfs /sys/kernel/debug
/bin/busybox mount -t tracefs tracefs /sys/kernel/tracing
PYTHONPATH=/lib /bin/python -S -B /lib/agent.py
/bin/busybox poweroff -f
"""


def initramfs(userland: Path, kernel: Kernel, modules: Sequence[str] = ()) -> bytes:
    """Make the archive for one kernel, with the injectors, and with more of its modules and all that they need.

    Raises:
        LabError: something is missing in what was fetched.
    """
    more = {name: data for name, (data, _) in with_needed(kernel, modules).items()}
    found = {**{name: module_data(kernel.module(name)) for name in INJECTORS}, **more}
    return newc([*_frame(), *_python(userland), *(file(f"lib/{name}.ko", data) for name, data in found.items())])


def _frame() -> Iterator[Entry]:
    yield from (directory(name) for name in ("bin", "proc", "sys", "dev", "lib", "lib64", "usr", "usr/bin", "usr/lib"))
    yield device("dev/console", 5, 1)
    yield file("init", _INIT.encode(), 0o755)
    yield file("lib/agent.py", Path(agent.__file__).read_bytes())
    yield from (directory(name) for name in ("lib/memhp", "lib/memhp/abi"))
    yield file("lib/memhp/abi/state.py", Path(state.__file__).read_bytes())


def _python(userland: Path) -> Iterator[Entry]:
    yield file("bin/busybox", _find(userland, "bin/busybox").read_bytes(), 0o755)
    binary = _find(userland, "usr/bin/python3.*")
    yield file(f"usr/bin/{binary.name}", binary.read_bytes(), 0o755)
    yield link("bin/python", f"/usr/bin/{binary.name}")
    yield file(f"lib64/{_LOADER}", _find(userland, f"**/{_LOADER}").read_bytes(), 0o755)
    yield from (file(f"lib/{name}", _find(userland, f"**/{name}").read_bytes(), 0o755) for name in _LIBRARIES)
    yield from _library(userland, f"usr/lib/{binary.name}")


def _library(userland: Path, name: str) -> Iterator[Entry]:
    # Only what the agent needs, because every megabyte is unpacked by an emulated processor.
    yield directory(name)
    root = userland / name
    for path in sorted(root.iterdir()):
        if path.suffix == ".py":
            yield file(f"{name}/{path.name}", path.read_bytes())
        elif path.name in _PACKAGES:
            yield directory(f"{name}/{path.name}")
            yield from (file(f"{name}/{path.name}/{part.name}", part.read_bytes()) for part in sorted(path.glob("*.py")))
    yield directory(f"{name}/lib-dynload")
    for extension in _EXTENSIONS:
        found = _find(root, f"lib-dynload/{extension}.*.so")
        yield file(f"{name}/lib-dynload/{found.name}", found.read_bytes(), 0o755)


def _find(root: Path, pattern: str) -> Path:
    for path in sorted(root.glob(pattern)):
        real = Path(os.path.realpath(path))
        if real.is_file() and not re.search(r"-config$", path.name):
            return real
    raise LabError(f"{root} has no {pattern}", "fetch it again: memhp lab fetch")
