"""Chunks of pages, one and many at a time: who gets which, what is refused, and what becomes of them."""

from __future__ import annotations

import errno as errnos
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from memhp import HotplugError, InvalidInput, Machine, PageKind, PageRefusal, Rules
from memhp.kernel.chunks import Chunks
from memhp.kernel.kinds import MigrateType
from memhp.kernel.pagemap import PageArray
from memhp.locking import switch
from page_checker import check_pages
from support import Boot, Running, in_thread, until_parked, write

MOVABLE = [PageKind.ANONYMOUS, PageKind.FILE]
KERNEL = [PageKind.SLAB, PageKind.PAGE_TABLE, PageKind.RECLAIMABLE]


def movable_machine(boot: Boot) -> tuple[Machine, int]:
    """Boot a machine of 1 GiB with a block in ZONE_MOVABLE."""
    machine = boot("1GiB")
    (block,) = machine.add_memory(0, machine.next_room(machine.block_size), machine.block_size)
    machine.device_online(block, "online_movable")
    return machine, block


# -- taking and giving back


def test_a_chunk_is_aligned_and_comes_back(boot: Boot) -> None:
    """Of each order, at a multiple of its size, and free again afterwards."""
    machine = boot("1GiB")
    free = machine.pages.count_free()
    pages = [machine.pages.alloc_pages(order, owner="test") for order in range(11)]
    assert [page.pfn is not None and page.pfn % (1 << page.order) for page in pages] == [0] * 11
    assert machine.pages.count_free() == free - 2047
    check_pages(machine)
    for page in pages:
        machine.pages.free_pages(page)
    assert machine.pages.count_free() == free
    check_pages(machine)


def test_many_at_once_and_some_back(boot: Boot) -> None:
    """Freed in any order, and in parts; the rest is still held."""
    machine = boot("1GiB")
    free = machine.pages.count_free()
    array = machine.pages.alloc_pages_bulk(50_000, kind=PageKind.FILE, owner="cache")
    pfns = array.pfns
    assert (array.nr_pages, len(set(pfns.tolist()))) == (50_000, 50_000)
    order = np.random.default_rng(1).permutation(50_000)
    machine.pages.free_pages_bulk(array, pfns[order[:20_000]])
    assert sorted(array.pfns.tolist()) == sorted(pfns[order[20_000:]].tolist())
    check_pages(machine)
    machine.pages.free_pages_bulk(array)
    assert (array.freed, array.nr_pages, machine.pages.count_free()) == (True, 0, free)


def test_pages_freed_one_by_one_are_at_hand_for_the_next(boot: Boot) -> None:
    """The last that was freed is the next, as in a CPU's list; in /proc they are not free."""
    machine, _ = movable_machine(boot)
    pages = [machine.pages.alloc_pages() for _ in range(3)]
    pfns = [page.pfn for page in pages]
    for page in pages:
        machine.pages.free_pages(page)
    assert [machine.pages.alloc_pages().pfn for _ in range(3)] == pfns[::-1]
    assert machine.pages.chunks.drain() > 0
    check_pages(machine)


def test_kernel_pages_gather_in_pageblocks_of_their_own(boot: Boot) -> None:
    """The first slab page takes a whole pageblock; movable pages don't go there, and reclaimable ones have another."""
    machine = boot("1GiB")
    slab = [machine.pages.alloc_pages(kind=PageKind.SLAB) for _ in range(100)]
    anonymous = [machine.pages.alloc_pages(kind=PageKind.ANONYMOUS) for _ in range(100)]
    inodes = [machine.pages.alloc_pages(kind=PageKind.RECLAIMABLE) for _ in range(100)]
    blocks = [{page.pfn // 512 for page in pages if page.pfn} for pages in (slab, anonymous, inodes)]
    assert not blocks[0] & blocks[1]
    assert not blocks[0] & blocks[2]
    assert not blocks[1] & blocks[2]
    check_pages(machine)


def test_watermarks_keep_pages_for_emergencies(boot: Boot) -> None:
    """An ordinary allocation ends at min; one for an emergency goes on to the last page."""
    machine = boot("256MiB")
    free = machine.pages.count_free()
    with pytest.raises(HotplugError, match=r"app asked for .* movable chunks of order 0") as caught:
        machine.pages.alloc_pages_bulk(free, owner="app")
    assert caught.value.errno == errnos.ENOMEM
    assert machine.pages.count_free() == free
    everything = machine.pages.alloc_pages_bulk(free, emergency=True)
    assert machine.pages.count_free() == 0
    with pytest.raises(HotplugError, match="ENOMEM"):
        machine.pages.alloc_pages(emergency=True)
    machine.pages.free_pages_bulk(everything)
    check_pages(machine)


def test_an_atomic_reserve_serves_those_only(boot: Boot) -> None:
    """A high-order atomic request leaves its pageblock as a reserve, which ordinary ones get only when nothing else is left."""
    machine = boot("1GiB")
    atomic = machine.pages.alloc_pages(3, PageKind.UNMOVABLE, migratetype=MigrateType.HIGHATOMIC)
    assert atomic.pfn is not None
    reserved = atomic.pfn // 512
    others = machine.pages.alloc_pages_bulk(20_000, kind=PageKind.UNMOVABLE)
    assert reserved not in set((others.pfns // 512).tolist())
    again = machine.pages.alloc_pages(3, PageKind.UNMOVABLE, migratetype=MigrateType.HIGHATOMIC)
    assert again.pfn is not None
    assert again.pfn // 512 == reserved
    check_pages(machine)


def test_pages_come_from_the_nearest_node(boot: Boot) -> None:
    """By distance from the one that is asked for."""
    nodes = [
        {"memory": "1GiB", "distances": [10, 40, 20]},
        {"memory": "1GiB", "distances": [40, 10, 30]},
        {"memory": "1GiB", "distances": [20, 30, 10]},
    ]
    machine = boot(nodes)
    held = machine.pages.alloc_pages_bulk(1_000_000 * 5 // 7, node=1, emergency=True)
    counts = dict.fromkeys(range(3), 0)
    for block in held.blocks:
        counts[machine.block(block).nid] += 1
    assert counts == {1: 8, 2: 8, 0: 6}
    single = machine.pages.alloc_pages(node=0)
    assert machine.block(single.blocks[0]).nid == 0


# -- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": 11}, r"11.*a number from 0 to 10"),
        ({"order": -1}, r"-1.*a number from 0 to 10"),
        ({"order": 1.0}, r"1\.0.*a number from 0 to 10"),
        ({"order": True}, r"True.*a number from 0 to 10"),
        ({"kind": "chewing gum"}, r"chewing gum.*one of movable, anonymous"),
        ({"kind": PageKind.POISONED}, r"hwpoison.*hard_offline_page"),
        ({"kind": PageKind.THP}, r"0.*9, the order of thp pages"),
        ({"migratetype": "sideways"}, r"sideways.*one of unmovable, movable"),
        ({"migratetype": 9}, r"9.*one of unmovable"),
        ({"migratetype": MigrateType.ISOLATE}, r"isolate.*unmovable, movable, reclaimable or highatomic"),
        ({"kind": PageKind.SLAB, "migratetype": "movable"}, r"movable.*slab pages can't move"),
        ({"node": 7}, r"7.*one of \[0\]"),
    ],
)
def test_what_can_not_be_asked_for(boot: Boot, given: dict[str, Any], message: str) -> None:
    """The value is named with what would do, and nothing is taken."""
    machine = boot("1GiB")
    free = machine.pages.count_free()
    for _ in range(2):
        with pytest.raises(InvalidInput, match=message):
            machine.pages.alloc_pages(**given)
        machine.pages.free_pages(machine.pages.alloc_pages())  # now pages are at hand
    assert machine.pages.count_free() == free


@pytest.mark.parametrize("count", [0, -1, True, 1.5, None])
def test_a_bad_number_of_chunks(boot: Boot, count: object) -> None:
    """Whole numbers from 1 on."""
    with pytest.raises(InvalidInput, match="a number of chunks, at least 1"):
        boot("1GiB").pages.alloc_pages_bulk(count)  # type: ignore[arg-type]


def test_freeing_twice(boot: Boot) -> None:
    """One chunk, an array, and a part of an array."""
    machine = boot("1GiB")
    pages = machine.pages
    page, large, array = pages.alloc_pages(), pages.alloc_pages(3), pages.alloc_pages_bulk(100, owner="app")
    pages.free_pages(page)
    pages.free_pages(large)
    for one in (page, large):
        with pytest.raises(InvalidInput, match="not freed yet"):
            pages.free_pages(one)
    pfns = array.pfns
    pages.free_pages_bulk(array, pfns[:10])
    with pytest.raises(InvalidInput, match=rf"{hex(pfns[3])}.*a page that app .*this is not allocated"):
        pages.free_pages_bulk(array, pfns[3:20])
    assert array.nr_pages == 90
    pages.free(array)
    with pytest.raises(InvalidInput, match="not freed yet"):
        pages.free_pages_bulk(array)
    check_pages(machine)


def test_freeing_one_page_twice_in_one_call(boot: Boot) -> None:
    """It is named, and nothing was freed."""
    machine = boot("1GiB")
    array = machine.pages.alloc_pages_bulk(100)
    pfns = array.pfns
    with pytest.raises(InvalidInput, match=rf"{hex(pfns[7])}.*each named once"):
        machine.pages.free_pages_bulk(array, np.array([*pfns[:20], pfns[7]]))
    assert array.nr_pages == 100
    check_pages(machine)


def test_freeing_what_is_another_s(boot: Boot) -> None:
    """The error says whose it is; other machines' pages, and what is no page at all, are refused too."""
    machine, other = boot("1GiB"), boot("1GiB")
    mine = machine.pages.alloc_pages_bulk(10, owner="me")
    theirs = machine.pages.alloc_pages(owner="them")
    with pytest.raises(InvalidInput, match=r"this is one of them \(movable, 1 pages\)"):
        machine.pages.free_pages_bulk(mine, np.array([theirs.pfn]))
    with pytest.raises(InvalidInput, match="page frame of a page that exists"):
        machine.pages.free_pages_bulk(mine, np.array([1 << 40]))
    with pytest.raises(InvalidInput, match="whole numbers"):
        machine.pages.free_pages_bulk(mine, np.array([1.5]))
    foreign = other.pages.alloc_pages()
    for what in (foreign, None, 5, "page"):
        with pytest.raises(InvalidInput, match=r"what was allocated|what this machine allocated"):
            machine.pages.free_pages(what)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="an allocation of this machine"):
        machine.free_pages(other.alloc_pages(5, blocks=[1]))
    assert foreign.pfn is not None


# -- when their block goes offline


@pytest.mark.fact("7.3", "7.4")
def test_chunks_migrate_and_their_holders_know_where_to(boot: Boot) -> None:
    """Single ones, large ones and arrays; each keeps its content's size, and nothing is left behind."""
    machine, block = movable_machine(boot)
    one = machine.pages.alloc_pages(owner="one")
    large = machine.pages.alloc_pages(5, owner="large")
    array = machine.pages.alloc_pages_bulk(10_000, owner="many")
    fours = machine.pages.alloc_pages_bulk(100, order=2, owner="fours")
    held = [one, large, array, fours]
    assert [holding.blocks for holding in held] == [[block]] * 4
    write(machine, f"memory{block}/state", "offline")
    assert all(block not in holding.blocks for holding in held)
    assert [holding.nr_pages for holding in held] == [1, 32, 10_000, 400]
    assert large.pfn is not None
    assert large.pfn % 32 == 0
    assert not (fours.pfns % 4).any()
    check_pages(machine)
    for holding in held:
        machine.free_pages(holding)
    check_pages(machine)
    assert not any(section.singles for section in machine.pages.buddy.sections.values())


@pytest.mark.fact("7.1")
def test_a_kernel_page_among_many_is_named(boot: Boot) -> None:
    """Page, kind and owner of the first that can't move, without a callback having been called."""
    machine = boot("1GiB")
    machine.alloc_pages(machine.pages.count_free() - 20_000, owner="hog")
    machine.pages.alloc_pages_bulk(5_000, owner="app", emergency=True)
    slab = machine.pages.alloc_pages(2, PageKind.SLAB, owner="dentry", emergency=True)
    with pytest.raises(PageRefusal) as caught:
        machine.device_offline(slab.blocks[0])
    assert (caught.value.page, caught.value.kind, caught.value.owner) == (slab.pfn, "slab", "dentry")
    check_pages(machine)


@pytest.mark.fact("7.5")
def test_a_pinned_chunk_keeps_its_block_until_it_is_unpinned(boot: Boot) -> None:
    """All others have moved meanwhile."""
    machine, block = movable_machine(boot)
    array = machine.pages.alloc_pages_bulk(1000, owner="many")
    page = machine.pages.alloc_pages(owner="rdma")
    machine.pages.pin(page)
    thread = in_thread(lambda: machine.device_offline(block))
    until_parked(thread)
    assert page.blocks == [block]
    assert block not in array.blocks
    machine.pages.unpin(page)
    assert thread.result() == 0
    assert block not in page.blocks
    check_pages(machine)


def test_freeing_a_pinned_chunk_lets_the_block_go(boot: Boot) -> None:
    """An array and a page; a freed page is not kept at hand while a block is isolated."""
    machine, block = movable_machine(boot)
    array = machine.pages.alloc_pages_bulk(10, owner="many")
    page = machine.pages.alloc_pages()
    for holding in (array, page):
        machine.pages.pin(holding)
    thread = in_thread(lambda: machine.device_offline(block))
    until_parked(thread)
    machine.pages.free_pages(page)
    machine.pages.free_pages_bulk(array)
    assert thread.result() == 0
    check_pages(machine)


@pytest.mark.fact("7.1")
def test_cma_keeps_its_block(boot: Boot) -> None:
    """Isolation for offlining takes a pageblock of CMA for unmovable."""
    machine = boot("1GiB")
    machine.pages.reserve_cma(machine.block(4).start_pfn, 1024)
    with pytest.raises(PageRefusal, match="CMA"):
        machine.device_offline(4)
    with pytest.raises(InvalidInput, match="whole pageblocks"):
        machine.pages.reserve_cma(machine.block(4).start_pfn, 100)
    check_pages(machine)


@pytest.mark.fact("7.7")
def test_bad_hardware_takes_a_page_from_its_holder(boot: Boot) -> None:
    """One of many, or the only one; a soft offline moves it before."""
    machine = boot("1GiB", rules=Rules.LINUX_6_12)
    array = machine.pages.alloc_pages_bulk(100, owner="many")
    page = machine.pages.alloc_pages(owner="one")
    soft = machine.pages.alloc_pages(owner="soft")
    lost, gone, moved = int(array.pfns[5]), page.pfn, soft.pfn
    write(machine, "hard_offline_page", hex(lost << 12))
    write(machine, "hard_offline_page", hex((gone or 0) << 12))
    write(machine, "soft_offline_page", hex((moved or 0) << 12))
    assert (array.nr_pages, lost in array.pfns, page.pfn) == (99, False, None)
    assert soft.pfn not in {None, moved}
    check_pages(machine)
    for holding in (array, page, soft):
        machine.free_pages(holding)
    check_pages(machine)


def test_many_threads(boot: Boot) -> None:
    """Each page has one holder, and every page comes back."""
    machine = boot("1GiB")
    free = machine.pages.count_free()

    def churn() -> list[int]:
        kept = []
        for number in range(300):
            pages = [machine.pages.alloc_pages() for _ in range(5)]
            kept.append(pages.pop())
            for page in pages:
                machine.pages.free_pages(page)
            if number % 50 == 0:
                machine.free_pages(machine.pages.alloc_pages_bulk(500))
        return [page.pfn or 0 for page in kept]

    threads = [in_thread(churn, f"T{number}") for number in range(4)]
    pfns = [pfn for thread in threads for pfn in thread.result()]
    assert len(set(pfns)) == 1200
    assert machine.pages.count_free() == free - 1200
    check_pages(machine)


class Allocator(RuleBasedStateMachine):
    """Everything at once: what is known of the pages stays what can be worked out from the free ones."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine.boot("256MiB", rules=Rules.LINUX_6_12, lockdep=True)
        (self.block,) = self.machine.add_memory(0, self.machine.next_room(128 << 20), 128 << 20)
        self.hog = self.machine.alloc_pages(60_000, owner="hog")  # so that zones run out
        self.held: list[Any] = []

    def attempt(self, what: Any) -> None:
        assert self.errno_of(lambda: self.held.append(what())) in {0, errnos.ENOMEM}

    def errno_of(self, what: Any) -> int | None:
        try:
            what()
        except HotplugError as error:
            return error.errno
        return 0

    @rule(order=st.integers(0, 10), kind=st.sampled_from([*MOVABLE, *KERNEL]), emergency=st.booleans())
    def one(self, order: int, kind: PageKind, emergency: bool) -> None:  # noqa: FBT001
        self.attempt(lambda: self.machine.pages.alloc_pages(order, kind, owner="one", emergency=emergency))

    @rule(count=st.integers(1, 3000), order=st.integers(0, 3), kind=st.sampled_from([*MOVABLE, *KERNEL]))
    def many(self, count: int, order: int, kind: PageKind) -> None:
        self.attempt(lambda: self.machine.pages.alloc_pages_bulk(count, order, kind, owner="many", emergency=True))

    @rule(count=st.integers(1, 5000), kind=st.sampled_from([*MOVABLE, *KERNEL]))
    def run(self, count: int, kind: PageKind) -> None:
        self.attempt(lambda: self.machine.alloc_pages(count, kind, owner="run"))

    @rule(count=st.integers(1, 6), kind=st.sampled_from([PageKind.THP, PageKind.HUGETLB, PageKind.HUGETLB_FREE]))
    def huge(self, count: int, kind: PageKind) -> None:
        self.attempt(lambda: self.machine.alloc_pages(512 * count, kind, owner="huge"))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.machine.free_pages(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: any(isinstance(one, PageArray) for one in self.held))
    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        array = data.draw(st.sampled_from([one for one in self.held if isinstance(one, PageArray)]))
        pfns = array.pfns
        kept = data.draw(st.integers(1, len(pfns)))
        chosen = np.random.default_rng(kept).permutation(len(pfns))[kept:]
        self.machine.pages.free_pages_bulk(array, pfns[chosen])

    @rule()
    def plug(self) -> None:
        self.machine.device_online(self.block, "online_movable")

    @rule(block=st.integers(0, 2))
    def unplug(self, block: int) -> None:
        """Offline, with a signal if it must wait."""
        over, go = threading.Event(), threading.Event()

        def request() -> None:
            go.wait(30)
            try:
                self.machine.device_offline(self.block if block == 2 else block)
            finally:
                over.set()

        thread = in_thread(request)
        switch.task_of(thread).on_park = lambda _: over.set()
        go.set()
        assert over.wait(60)
        self.machine.send_signal(thread)
        assert self.errno_of(thread.result) in {0, errnos.EBUSY, errnos.EINVAL, errnos.EINTR}

    @rule(pfn=st.integers(0x100, 0xFFFF))
    def soft_offline(self, pfn: int) -> None:
        assert self.errno_of(lambda: write(self.machine, "soft_offline_page", hex(pfn << 12))) in {0, errnos.EIO}

    def teardown(self) -> None:
        check_pages(self.machine)
        for holding in self.held:
            self.machine.free_pages(holding)
        check_pages(self.machine)


Allocator.TestCase.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
TestAllocator = Allocator.TestCase


def test_numpy_comes_with_the_first_chunk() -> None:
    """Neither importing memhp nor runs of pages need it."""
    script = (
        "import sys, memhp; m = memhp.Machine.boot('1GiB'); m.free_pages(m.alloc_pages(100)); m.tree.read('/proc/meminfo');"
        "print('numpy' in sys.modules); m.pages.alloc_pages(); print('numpy' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output == "False\nTrue\n"


# -- several threads


def test_two_threads_that_need_the_first_chunk_ask_one_allocator(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes while the other is still setting it up waits, and no page is counted twice or lost."""
    machine = boot("1GiB")
    begun, go_on = threading.Event(), threading.Event()
    set_up = Chunks.__init__

    def slowly(self: Chunks, *args: Any) -> None:
        begun.set()
        assert go_on.wait(30)
        set_up(self, *args)

    monkeypatch.setattr(Chunks, "__init__", slowly)
    one = in_thread(machine.pages.alloc_pages, "one")
    assert begun.wait(30)
    other = in_thread(machine.pages.alloc_pages, "other")
    until_parked(other)
    go_on.set()
    assert {one.result().pfn, other.result().pfn} == {0x1000, 0x1001}
    check_pages(machine)


class Late:
    """A lock before which somebody else comes, once."""

    def __init__(self, lock: Any, act: Callable[[], object]) -> None:
        self._lock = lock
        self._acts = [act]

    def __enter__(self) -> None:
        while self._acts:
            self._acts.pop()()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_of_two_who_free_a_page_at_once_the_second_is_refused(boot: Boot) -> None:
    """It had looked already whether the page was free; it looks again where the other one can't come between."""
    machine, _ = movable_machine(boot)
    pages = machine.pages
    page = pages.alloc_pages()
    pages.chunks.cpu_lock = Late(pages.chunks.cpu_lock, lambda: pages.free_pages(page))  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="not freed yet"):
        machine.free_pages(page)
    first, second = pages.alloc_pages(), pages.alloc_pages()
    assert (first.nr_pages, second.nr_pages, first.pfn == second.pfn) == (1, 1, False)
    check_pages(machine)


def test_who_frees_a_page_while_it_is_taken_out_of_use_waits(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """soft_offline_page has found what to move; the owner gives back what it has afterwards, which is the new place."""
    machine = boot("1GiB", rules=Rules.LINUX_6_12)
    page = machine.pages.alloc_pages()
    place = page.pfn
    assert place is not None
    frees: list[Running] = []
    take = Chunks.take

    def taking(self: Chunks, *args: Any, **options: Any) -> Any:
        if not frees:
            frees.append(in_thread(lambda: machine.pages.free_pages(page), "owner"))
            until_parked(frees[0])
        return take(self, *args, **options)

    monkeypatch.setattr(Chunks, "take", taking)
    write(machine, "soft_offline_page", hex(place << 12))
    frees[0].result()
    assert (page.freed, machine.block(place >> 15).poisoned) == (True, {place})
    check_pages(machine)
