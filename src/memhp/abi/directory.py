"""One directory, opened once, whose files are read by their short names: for the many small files of memory blocks.

``Tree.read`` resolves a whole path for each file. That is right for a few files and slow for 65,536 blocks, so trees that
can do better offer a ``Directory``. This module imports nothing but built-in modules, since ``memhp list`` stands on it.
"""

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Directory(Protocol):
        """A directory that stays open, with names relative to it (``memory32/state``)."""

        def names(self, name: str = ".") -> list[str]:
            """Give the names in it, or in a directory below it, in the order of the file system."""

        def read(self, name: str) -> str:
            """Give the text of a file below it."""

        def close(self) -> None:
            """Let it go."""


__all__ = ["DirectoryOfFiles"]

_ENOUGH = 4096
_READ = posix.O_RDONLY | posix.O_CLOEXEC


class DirectoryOfFiles:
    """A directory of a file system.

    Names are followed as the system follows them; what they may not lead to is the caller's business. A file is read with
    one ``read()`` of a page, which is what files in /sys give at most; a longer file is read to its end.

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

    def read(self, name: str) -> str:
        """Give the text of a file below it; bytes that are no UTF-8 are replaced."""
        descriptor = posix.open(name, _READ, dir_fd=self.descriptor)
        try:
            data = posix.read(descriptor, _ENOUGH)
            if len(data) == _ENOUGH:
                while more := posix.read(descriptor, _ENOUGH):
                    data += more
        finally:
            posix.close(descriptor)
        return data.decode("utf-8", "replace")

    def close(self) -> None:
        """Close the directory."""
        posix.close(self.descriptor)
