"""Moving single pages out of a block that goes offline, many at a time (``mm/memory_hotplug.c``: ``do_migrate_range``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memhp.kernel.blocks import MemoryBlock
from memhp.kernel.holdings import Place
from memhp.kernel.kinds import Leaving
from memhp.kernel.migrate import targets
from memhp.kernel.pagemap import LEAVING, TAIL, Page, PageArray, Pfns
from memhp.units import Pfn

if TYPE_CHECKING:
    from memhp.kernel.chunks import Chunks

__all__ = ["evacuate"]


def evacuate(chunks: Chunks, block: MemoryBlock) -> list[Place]:
    """Move the movable chunks of a block elsewhere; gives those that stay, or at least the first of them.

    Raises:
        PageRefusal: EBUSY: a driver's page that is still referenced.
    """
    pages = chunks.pages
    held = chunks.first_that(Leaving.HELD, block) + chunks.first_that(Leaving.REFUSES, block)
    if held:
        raise pages.refusal(min(held, key=lambda place: place.start_pfn), "is still referenced")
    stuck: list[Place] = []
    for section in pages.buddy.sections_of(block):
        if not section.singles:
            continue
        heads = chunks.map.heads_in(section, LEAVING[Leaving.MIGRATES])
        heads, pinned = _without_pinned(chunks, heads)
        stuck += _places(chunks, block, pinned)
        for order, some in _by_order(chunks, heads):
            stayed = chunks.move(section, some, order, targets(pages, block.nid))
            pages.migrated += len(some) - len(stayed) << order
            stuck += _places(chunks, block, stayed)
    return stuck


def _without_pinned(chunks: Chunks, heads: Pfns) -> tuple[Pfns, Pfns]:
    if not chunks.pinned or not len(heads):
        return heads, heads[:0]
    kept = np.zeros(len(heads), np.bool_)
    for holding in chunks.pinned:
        if isinstance(holding, PageArray):
            kept |= chunks.map.owner[heads] == holding.id
        elif isinstance(holding, Page) and holding.pfn is not None:
            kept |= heads == holding.pfn
    return heads[~kept], heads[kept]


def _by_order(chunks: Chunks, heads: Pfns) -> list[tuple[int, Pfns]]:
    # Nearly all are single pages, which whole arrays tell from larger chunks; of those somebody has to be asked.
    larger = chunks.map.owner[np.minimum(heads + 1, chunks.map.end_pfn - 1)] == TAIL
    groups: dict[int, list[Pfns]] = {0: [heads[~larger]]}
    for holder, held in chunks.map.by_holder(heads[larger]):
        if isinstance(holder, PageArray):
            groups.setdefault(holder.order, []).append(held)
            continue
        for pfn in held.tolist():
            page = chunks.map.holder_of(pfn)
            if isinstance(page, Page):
                groups.setdefault(page.order, []).append(np.array([pfn], np.int64))
    return [(order, np.concatenate(some)) for order, some in groups.items() if sum(map(len, some))]


def _places(chunks: Chunks, block: MemoryBlock, pfns: Pfns) -> list[Place]:
    holder = chunks.map.holder_of(Pfn(int(pfns[0]))) if len(pfns) else None
    return [] if holder is None else [Place(Pfn(int(pfns[0])), block, holder)]
