"""Archives in newc form, read again by a naive reader and by cpio itself."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cpio_reader import unpack
from memhp.lab.cpio import device, directory, file, link, newc

ENTRIES = [
    directory("bin"),
    file("bin/odd", b"12345", 0o755),
    file("even", b"1234"),
    link("sh", "/bin/odd"),
    device("null", 1, 3),
]


def test_what_is_written_is_read_again() -> None:
    """Names, modes, contents and device numbers survive."""
    assert list(unpack(newc(ENTRIES))) == [
        ("bin", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("bin/odd", stat.S_IFREG | 0o755, b"12345", (0, 0)),
        ("even", stat.S_IFREG | 0o644, b"1234", (0, 0)),
        ("sh", stat.S_IFLNK | 0o777, b"/bin/odd", (0, 0)),
        ("null", stat.S_IFCHR | 0o600, b"", (1, 3)),
    ]


def test_every_file_has_its_own_inode() -> None:
    """Two files with one inode would be one file with two names."""
    archive = newc(ENTRIES)
    starts = [index for index in range(len(archive)) if archive.startswith(b"070701", index)]
    inodes = [archive[start + 6 : start + 14] for start in starts]
    assert len(set(inodes)) == len(inodes) == len(ENTRIES) + 1


@pytest.mark.skipif(not shutil.which("cpio"), reason="needs the program cpio")
def test_cpio_lists_it(tmp_path: Path) -> None:
    """The program that made the format reads it."""
    (tmp_path / "archive").write_bytes(newc(ENTRIES))
    with (tmp_path / "archive").open("rb") as archive:
        listed = subprocess.run(["cpio", "-t", "--quiet"], stdin=archive, capture_output=True, text=True, check=True)  # noqa: S607

    assert listed.stdout.split() == ["bin", "bin/odd", "even", "sh", "null"]
    assert listed.stderr == ""
