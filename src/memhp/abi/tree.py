"""Trees of files: the protocol that every machine is asked through, and a directory as one.

Paths are absolute as on a Linux system (``/sys/devices/system/memory/memory32/state``), whatever stands behind.
Errors are ``OSError`` with the errno that the system call would give.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from memhp.abi.directory import DirectoryOfFiles

if TYPE_CHECKING:
    from pathlib import Path

    from memhp.abi.directory import Directory

__all__ = ["BinaryFile", "DirTree", "Tree", "open_binary", "open_directory"]

_READ = 1 << 20
"""Bytes of one ``pread()``; a multiple of 8."""


class Tree(Protocol):
    """Files that can be read, written and listed."""

    def read(self, path: str) -> str:
        """Give the file's text."""

    def read_bytes(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """Give ``size`` bytes of the file from ``offset`` on (fewer at its end, all if -1), as one ``pread()``.

        It is the way to read binary files (/proc/kpageflags, /proc/kpagecount), whose offset and size are multiples of 8.
        """

    def write(self, path: str, data: str | bytes) -> int:
        """Write to the file, as one ``write()``; gives the number of bytes taken."""

    def list(self, path: str) -> list[str]:
        """Give the names in a directory, sorted."""

    def readlink(self, path: str) -> str:
        """Give what a symbolic link says."""

    def exists(self, path: str) -> bool:
        """Say whether there is such a file or directory, following links."""


class BinaryFile(Protocol):
    """An open file of numbers, such as /proc/kpageflags."""

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """Read at an offset in bytes into the buffer; gives the number of bytes, 0 at the end of the file."""

    def close(self) -> None:
        """Close it; does nothing the second time."""


class _DirFile:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def readinto(self, buffer: memoryview, offset: int) -> int:
        return os.preadv(self._descriptor, [buffer], offset)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class DirTree:
    """A directory as a tree: ``DirTree("/")`` is this machine, another directory a captured copy.

    Read-only unless ``writable``, so that nothing changes a machine by accident. Symbolic links inside a copy are
    followed as they are; a link that leads out of the copy is refused (ENOENT).
    """

    def __init__(self, root: str | os.PathLike[str] = "/", *, writable: bool = False) -> None:
        self._root = os.path.realpath(root)
        self.writable = writable

    def __repr__(self) -> str:
        return f"<DirTree {self._root}{' writable' if self.writable else ''}>"

    @property
    def root(self) -> Path:
        """The directory, with links resolved."""
        from pathlib import Path  # noqa: PLC0415 - it imports as much as a whole command

        return Path(self._root)

    @property
    def is_this_machine(self) -> bool:
        """Whether it is the whole of this machine rather than a copy."""
        return self._root == "/"

    def real_path(self, path: str) -> str:
        """Give where a file of the tree is on this machine, with links resolved if the tree is a copy.

        Raises:
            FileNotFoundError: a link leads out of the copy.
        """
        if self.is_this_machine:  # nothing leads out of it, so nothing has to be resolved
            return "/" + path.lstrip("/")
        real = os.path.realpath(f"{self._root}/{path}")
        if real != self._root and not real.startswith(f"{self._root}/"):
            raise FileNotFoundError(errno.ENOENT, "leads out of the tree", path)
        return real

    def read(self, path: str) -> str:
        """Give the file's text; bytes that are no UTF-8 are replaced."""
        with open(self.real_path(path), "rb") as file:
            return file.read().decode(errors="replace")

    def read_bytes(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """Give ``size`` bytes of the file from ``offset`` on (all if -1), short only at its end.

        Raises:
            OSError: what the system call says, such as EINVAL for half a word of /proc/kpageflags.
        """
        descriptor = os.open(self.real_path(path), os.O_RDONLY)
        try:
            parts: list[bytes] = []
            while size:
                part = os.pread(descriptor, min(size, _READ) if size > 0 else _READ, offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                size -= len(part) if size > 0 else 0
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def write(self, path: str, data: str | bytes) -> int:
        """Write to the file without truncating it, in one system call.

        Raises:
            OSError: EROFS, the tree is read-only; else what the system call says.
        """
        if not self.writable:
            raise OSError(errno.EROFS, "the tree is read-only", path)
        descriptor = os.open(self.real_path(path), os.O_WRONLY)
        try:
            return os.write(descriptor, data.encode() if isinstance(data, str) else data)
        finally:
            os.close(descriptor)

    def list(self, path: str) -> list[str]:
        """Give the names in a directory, sorted."""
        return sorted(os.listdir(self.real_path(path)))

    def open_binary(self, path: str) -> BinaryFile:
        """Open a file of numbers for reading in bulk."""
        return _DirFile(self.real_path(path))

    def directory(self, path: str) -> DirectoryOfFiles:
        """Open a directory whose files are read in bulk.

        Links *below* it are followed wherever they lead, unlike those on the way to it.

        Raises:
            OSError: what ``open()`` says.
        """
        return DirectoryOfFiles(self.real_path(path))

    def readlink(self, path: str) -> str:
        """Give what a symbolic link says, without following it."""
        parent, _, name = path.rstrip("/").rpartition("/")
        return os.readlink(f"{self.real_path(parent)}/{name}")

    def exists(self, path: str) -> bool:
        """Say whether there is such a file or directory, following links."""
        try:
            return os.path.exists(self.real_path(path))
        except OSError:
            return False


def open_directory(tree: Tree, path: str) -> Directory:
    """Open a directory of any tree; fast where the tree has a way of its own (its method ``directory``).

    Raises:
        OSError: there is no such directory, or it may not be read.
    """
    own: Callable[[str], Directory] | None = getattr(tree, "directory", None)
    return own(path) if own is not None else _DirectoryOfTree(tree, path)


def open_binary(tree: Tree, path: str) -> BinaryFile:
    """Open a file of numbers of any tree for reading in bulk; fast where the tree has a way of its own.

    Raises:
        OSError: there is no such file, or it may not be read.
    """
    own: Callable[[str], BinaryFile] | None = getattr(tree, "open_binary", None)
    return own(path) if own is not None else _FileOfTree(tree, path)


class _FileOfTree:
    def __init__(self, tree: Tree, path: str) -> None:
        tree.read_bytes(path, 0, 8)  # says what is wrong with it, as open() would
        self._tree = tree
        self._path = path

    def readinto(self, buffer: memoryview, offset: int) -> int:
        found = self._tree.read_bytes(self._path, offset, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        pass


class _DirectoryOfTree:
    def __init__(self, tree: Tree, path: str) -> None:
        tree.list(path)  # says what is wrong with it, as open() would
        self._tree = tree
        self._path = path

    def names(self, name: str = ".") -> list[str]:
        return self._tree.list(self._path if name == "." else f"{self._path}/{name}")

    def read_all(self, names: Iterable[str]) -> list[str | None]:
        return [self._read(f"{self._path}/{name}") for name in names]

    def _read(self, path: str) -> str | None:
        try:
            return self._tree.read(path)
        except OSError:
            return None

    def close(self) -> None:
        pass
