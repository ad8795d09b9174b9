"""Work shared out among threads: each item once, and the first error ends all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.captured import ANON, RESERVED, SLAB, block, words
from memhp import DirTree
from memhp.host import Host, parallel
from memhp.host import explain as explaining


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_each_item_is_worked_on_once(workers: int) -> None:
    """However many threads there are, also none to spare."""
    done: list[int] = []
    parallel.share(range(100), lambda some: done.extend(list(some)), workers)
    assert sorted(done) == list(range(100))


def test_the_threads_work_at_the_same_time() -> None:
    """Each waits for the others, in the middle of its first item."""
    meeting, places = threading.Barrier(3, timeout=30), list[int]()

    def work(some: Iterator[int]) -> None:
        for _ in some:
            places.append(meeting.wait())

    parallel.share(range(3), work, 3)
    assert sorted(places) == [0, 1, 2]


def test_an_error_ends_all_of_them_and_is_raised() -> None:
    """The others finish the item that they have, and get no other."""
    meeting, failing, done = threading.Barrier(2), list[threading.Thread](), list[int]()

    def work(some: Iterator[int]) -> None:
        for item in some:
            if threading.current_thread() is not threading.main_thread():
                failing.append(threading.current_thread())
                meeting.wait()
                raise OSError(item, "no such page")
            meeting.wait()
            failing[0].join()
            done.append(item)

    with pytest.raises(OSError, match="no such page"):
        parallel.share(range(100), work, 2)
    assert len(done) == 1


def test_ctrl_c_ends_all_of_them() -> None:
    """It comes in the thread that called, and is raised when the other has ended."""
    meeting, ended = threading.Barrier(2), list[str]()

    def work(some: Iterator[int]) -> None:
        next(some)
        meeting.wait()
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        for _ in some:
            pass
        ended.append("the other")

    with pytest.raises(KeyboardInterrupt):
        parallel.share(range(100), work, 2)
    assert ended == ["the other"]


def test_blocks_read_by_several_threads_are_explained_as_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers don't depend on who read which block."""
    kinds = [[], [(700, ANON)], [(5, ANON), (2, SLAB)], [(3, RESERVED), (9, SLAB)], [(300, 0)]]
    for number in range(20):
        block(tmp_path, number)
    words(tmp_path, {number: kinds[number % 5] for number in range(20)})
    host = Host(DirTree(tmp_path))
    expected = host.explain()
    monkeypatch.setattr(explaining, "_SHARE", 1)
    monkeypatch.setattr(explaining, "usable_cpus", lambda: 4)

    assert host.explain() == expected
