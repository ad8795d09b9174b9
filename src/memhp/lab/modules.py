"""Modules of a kernel: what each needs, and the tree from which a guest's ``modprobe`` loads them."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from memhp.errors import LabError
from memhp.lab.cpio import Entry, directory, file
from memhp.lab.kernels import Kernel

__all__ = ["DAX_DRIVERS", "VIRTIO_DRIVERS", "load_order", "module_data", "module_tree", "with_needed"]

VIRTIO_DRIVERS = ("virtio_pci", "virtio_mem")
"""What a guest with a virtio-mem device needs, beside what these need."""

DAX_DRIVERS = ("dax_hmem", "device_dax", "kmem")
"""What a guest with soft-reserved memory needs, in the order in which they are loaded."""

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_data(path: Path) -> bytes:
    """Read a module, compressed or not.

    Raises:
        LabError: it is compressed in another way than Debian's kernels are.
    """
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix != ".ko":
        raise LabError(f"{path} is compressed in a way that memhp can't read")
    return path.read_bytes()


def with_needed(kernel: Kernel, names: Sequence[str]) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Give the modules and all that they need: the file of each, and what it needs itself; what is built in is left out.

    The package has no ``modules.dep`` before it is installed, so ``depends=`` of each module says what it needs (``modinfo``).

    Raises:
        LabError: the kernel has neither the module nor the same built in.
    """
    found: dict[str, tuple[bytes, tuple[str, ...]]] = {}
    waiting = [*names]
    while waiting:
        name = waiting.pop().replace("-", "_")
        if name in found or kernel.has_built_in(name):
            continue
        data = module_data(kernel.module(name))
        match = _DEPENDS.search(data)
        needed = tuple(word.replace("-", "_") for word in match[1].decode().split(",") if word) if match else ()
        found[name] = (data, tuple(word for word in needed if not kernel.has_built_in(word)))
        waiting += needed
    return found


def load_order(kernel: Kernel, names: Sequence[str]) -> list[str]:
    """Give the modules in their order, each behind what it needs and nobody before it needed; raises as :func:`with_needed`."""
    found = with_needed(kernel, names)
    order: list[str] = []
    for name in names:
        needed = [name, *_all_needed(found, name)] if name in found else []
        order += [each for each in reversed(needed) if each not in order]
    return order


def module_tree(kernel: Kernel, names: Sequence[str], lib: str) -> Iterator[Entry]:
    """Give ``modules/RELEASE`` below ``lib``: the modules, what they need, ``modules.dep``; raises as :func:`with_needed`."""
    found = with_needed(kernel, names)
    top = f"{lib}/modules/{kernel.release}"
    yield from (directory(name) for name in (f"{lib}/modules", top))
    yield from (file(f"{top}/{name}.ko", data) for name, (data, _) in found.items())
    lines = [f"{name}.ko: {' '.join(f'{other}.ko' for other in _all_needed(found, name))}".rstrip() for name in found]
    yield file(f"{top}/modules.dep", "".join(f"{line}\n" for line in lines).encode())


def _all_needed(found: dict[str, tuple[bytes, tuple[str, ...]]], name: str) -> list[str]:
    # As depmod writes them: who needs another stands before it.
    result: list[str] = []
    for other in found[name][1]:
        for each in [other, *_all_needed(found, other)]:
            if each in result:
                result.remove(each)
            result.append(each)
    return result
