"""One directory, opened once, whose files are read by their short names: for the many small files of memory blocks.

``Tree.read`` resolves a whole path for each file. That is right for a few files and slow for 65,536 blocks, so trees that
can do better offer a ``Directory``. This module imports nothing but built-in modules, since ``memhp list`` stands on it.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Directory(Protocol):
        """A directory that stays open, with names relative to it (``memory32/state``)."""

        def names(self, name: str = ".") -> list[str]:
            """Give the names in it, or in a directory below it, in the order of the file system."""

        def read_all(self, names: Iterable[str]) -> list[str | None]:
            """Give the texts of files below it; None for each that can't be read."""

        def close(self) -> None:
            """Let it go."""


__all__ = ["DirectoryOfFiles"]

_ENOUGH = 4096
_READ = posix.O_RDONLY | posix.O_CLOEXEC


class DirectoryOfFiles:
    """A directory of a file system.

    Links below it are followed as the system follows them; where they lead is the caller's business. Of each file at most
    a page is read, which is all that a file in /sys has.

    Raises:
        OSError: what ``open()`` says.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = posix.open(path, _READ | posix.O_DIRECTORY)

    def names(self, name: str = ".") -> list[str]:
        """Give the names in it, or in a directory below it, in the order of the file system."""
        descriptor = posix.open(name, _READ | posix.O_DIRECTORY, dir_fd=self.descriptor)
        try:
            return posix.listdir(descriptor)
        finally:
            posix.close(descriptor)

    def read_all(self, names: Iterable[str]) -> list[str | None]:
        """Give the texts of files below it; None for each that can't be read. Bytes that are no UTF-8 are replaced."""
        # The calls are bound to short names and nothing is wrapped: at 65,536 blocks this loop is most of the time.
        open_, read, close, above, flags, most = posix.open, posix.read, posix.close, self.descriptor, _READ, _ENOUGH
        texts: list[str | None] = []
        add = texts.append
        for name in names:
            try:
                descriptor = open_(name, flags, dir_fd=above)
            except OSError:
                add(None)
                continue
            try:
                add(read(descriptor, most).decode("utf-8", "replace"))
            except OSError:
                add(None)
            close(descriptor)
        return texts

    def close(self) -> None:
        """Close the directory."""
        posix.close(self.descriptor)
