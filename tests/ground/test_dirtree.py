"""A directory as a tree of files: this machine, or a captured copy of another."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from memhp import DirTree

STATE = "/sys/devices/system/memory/memory32/state"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of two memory blocks and a node, and beside it something that is none of its business."""
    root = tmp_path / "copy"
    for block in (32, 100, 4):
        (root / f"sys/devices/system/memory/memory{block}").mkdir(parents=True)
    (root / "sys/devices/system/memory/memory32/state").write_text("online\n")
    (root / "sys/devices/system/node/node0").mkdir(parents=True)
    (root / "sys/devices/system/node/node0/memory32").symlink_to("../../memory/memory32")
    (tmp_path / "secret").write_text("outside\n")
    (tmp_path / "copy-of-another").mkdir()
    (tmp_path / "copy-of-another/file").write_text("outside too\n")
    return root


def refusal(call: object) -> tuple[int | None, object]:
    """Call it and give the errno and file name of the OSError."""
    assert callable(call)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what the caller looks at
        call()
    return caught.value.errno, caught.value.filename


def test_a_file_is_read_by_its_path_on_a_linux_system(root: Path) -> None:
    """Paths are absolute as on the machine, wherever the copy lies; a missing leading slash is forgiven."""
    tree = DirTree(root)
    assert (tree.read(STATE), tree.read(STATE.lstrip("/"))) == ("online\n", "online\n")


def test_bytes_that_are_no_text_are_replaced(root: Path) -> None:
    """Firmware may put any bytes in a file; reading does not fail on them."""
    (root / "odd").write_bytes(b"a\xffb")
    assert DirTree(root).read("/odd") == "a\ufffdb"


def test_a_tree_is_read_only_unless_asked_otherwise(root: Path) -> None:
    """Writing to a tree that was not opened for it is EROFS, and the file stays."""
    assert refusal(lambda: DirTree(root).write(STATE, "offline"))[0] == errno.EROFS
    assert (root / STATE.lstrip("/")).read_text() == "online\n"


def test_a_writable_tree_writes_without_truncating(root: Path) -> None:
    """A write is one write() to the file as it is, text or bytes, and gives the number of bytes taken."""
    tree = DirTree(root, writable=True)
    assert tree.write(STATE, "off") == 3
    assert tree.read(STATE) == "offine\n"
    assert tree.write(STATE, b"\xff") == 1
    assert tree.read(STATE) == "\ufffdffine\n"


def test_a_write_creates_no_file(root: Path) -> None:
    """What is not there stays so: ENOENT."""
    assert refusal(lambda: DirTree(root, writable=True).write("/sys/new", "x"))[0] == errno.ENOENT
    assert not (root / "sys/new").exists()


def test_a_directory_is_listed_sorted(root: Path) -> None:
    """Names come in the order of text, whatever the file system's."""
    assert DirTree(root).list("/sys/devices/system/memory") == ["memory100", "memory32", "memory4"]


def test_a_link_is_followed_inside_the_copy_and_read_as_it_is(root: Path) -> None:
    """Reading goes through a link, and readlink() says what it says."""
    tree = DirTree(root)
    assert tree.read("/sys/devices/system/node/node0/memory32/state") == "online\n"
    assert tree.readlink("/sys/devices/system/node/node0/memory32") == "../../memory/memory32"


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "../copy-of-another/file", "../../../../../../etc/passwd"])
def test_a_link_that_leads_out_of_the_copy_is_refused(root: Path, target: str) -> None:
    """A captured copy can't make us read, list or write this machine's files: ENOENT, and it does not exist."""
    (root / "trap").symlink_to(target)
    tree = DirTree(root, writable=True)
    for call in (lambda: tree.read("/trap"), lambda: tree.write("/trap", "x"), lambda: tree.list("/trap")):
        assert refusal(call) == (errno.ENOENT, "/trap")
    assert not tree.exists("/trap")
    assert tree.readlink("/trap") == target


@pytest.mark.parametrize("path", ["/../secret", "/sys/../../secret", "/../copy-of-another/file"])
def test_dots_do_not_lead_out_either(root: Path, path: str) -> None:
    """A path that climbs out of the copy is ENOENT."""
    tree = DirTree(root)
    assert refusal(lambda: tree.read(path)) == (errno.ENOENT, path)
    assert not tree.exists(path)


@pytest.mark.parametrize(
    ("verb", "path", "number"),
    [
        ("read", "/sys/nothing", errno.ENOENT),
        ("read", "/sys/devices", errno.EISDIR),
        ("read", f"{STATE}/deeper", errno.ENOTDIR),
        ("list", "/sys/nothing", errno.ENOENT),
        ("list", STATE, errno.ENOTDIR),
        ("readlink", STATE, errno.EINVAL),
        ("readlink", "/sys/nothing", errno.ENOENT),
    ],
)
def test_what_is_not_there_fails_as_the_system_call_would(root: Path, verb: str, path: str, number: int) -> None:
    """Errors are OSErrors with the errno of the system call."""
    assert refusal(lambda: getattr(DirTree(root), verb)(path))[0] == number


def test_links_in_a_circle_fail_as_the_system_call_would(root: Path) -> None:
    """Links that lead to each other are ELOOP, and nothing exists there."""
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    tree = DirTree(root)
    assert not tree.exists("/a")
    assert refusal(lambda: tree.read("/a"))[0] == errno.ELOOP


def test_existence_is_of_files_directories_and_what_links_lead_to(root: Path) -> None:
    """A link to nothing does not exist."""
    (root / "dangling").symlink_to("nowhere")
    tree = DirTree(root)
    paths = [STATE, "/sys", "/", "/sys/devices/system/node/node0/memory32", "/dangling", "/sys/nothing"]
    assert [tree.exists(path) for path in paths] == [True, True, True, True, False, False]


def test_a_tree_prints_its_root(root: Path) -> None:
    """The text of a tree tells where it lies and whether it can be written."""
    assert repr(DirTree(root)) == f"<DirTree {root}>"
    assert repr(DirTree(root, writable=True)) == f"<DirTree {root} writable>"
