"""Which blocks to take offline or bring online, what that costs, and what is left.

A plan is made of explanations and changes nothing. Blocks that go for sure come first, the cheapest first; among equals those
in ZONE_MOVABLE, then those with the highest addresses. Blocks of which nobody can know come last, and are counted as a risk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from memhp.errors import InvalidInput
from memhp.host.block import Block
from memhp.host.explain import Explanation, Verdict, explain
from memhp.host.frames import FrameKind
from memhp.host.goal import Goal, Operation, parse_goal
from memhp.host.survey import Survey
from memhp.units import PAGE_SIZE, format_ids, format_size

__all__ = ["Left", "Plan", "Step", "make_plan"]

MEMMAP_SHARE = 64
"""A page of 4 KiB has a ``struct page`` of 64 bytes (include/linux/mm_types.h), so memory needs a 64th of itself."""
FLOOR_SHARE = 20
"""By default at least a 20th of the memory that is left must be available, and what the zones keep before they reclaim."""
SAFE_RATIO = 3.0
"""Up to three parts of movable memory to one of the kernel's go well (admin-guide/mm/memory-hotplug, ZONE_MOVABLE sizing)."""

_ZONE_WORDS = {"movable": "online_movable", "kernel": "online_kernel", "normal": "online_kernel", "dma32": "online_kernel"}


class Step(NamedTuple):
    """One block of a plan.

    Attributes:
        block: the block as it is now.
        node: its node.
        zone: the zone that it lies in, or will: '' if it isn't known.
        word: what will be written to its ``state``.
        verdict: of an offline, whether it will go.
        sentence: the verdict in words.
        move_pages: pages that must move, at least; None if unknown.
    """

    block: Block
    node: int
    zone: str
    word: str
    verdict: Verdict | None = None
    sentence: str = ""
    move_pages: int | None = None

    @property
    def risky(self) -> bool:
        """Whether nobody can know that it will work."""
        return self.verdict is Verdict.UNKNOWN


class Left(NamedTuple):
    """What a zone has now and will have, in pages."""

    node: int
    zone: str
    present: int
    present_after: int
    free: int
    free_after: int


class Plan(NamedTuple):
    """What would be done.

    Attributes:
        operation: offline or online.
        goal: what was asked for.
        steps: the blocks in the order in which they would be changed.
        spare: further blocks that would do, best first, should one of the steps fail; () if blocks were named.
        already: named blocks that are so already.
        problems: why it can't or must not be done; a plan with any of these is refused.
        warnings: what else somebody should know.
        left: the zones before and after.
        available: bytes available now; None if unknown.
        available_after: the same afterwards.
        floor: bytes that must stay available.
        ratio, ratio_after: movable memory for each part of the kernel's; None without kernel zones.
        page_size: bytes of a page.
    """

    operation: Operation
    goal: Goal
    block_size: int
    steps: tuple[Step, ...]
    spare: tuple[Step, ...] = ()
    already: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    available: int | None = None
    available_after: int | None = None
    floor: int | None = None
    ratio: float | None = None
    ratio_after: float | None = None
    page_size: int = PAGE_SIZE

    @property
    def exact(self) -> bool:
        """Whether named blocks are meant, for which no other can stand in."""
        return self.goal.size is None

    @property
    def feasible(self) -> bool:
        """Whether it may be carried out."""
        return not self.problems

    @property
    def size(self) -> int:
        """Bytes that it changes."""
        return len(self.steps) * self.block_size

    @property
    def ids(self) -> tuple[int, ...]:
        """The blocks' ids, in the order of the steps."""
        return tuple(int(step.block.id) for step in self.steps)

    @property
    def move_pages(self) -> int | None:
        """Pages that must move, at least; None if that isn't known of each block."""
        costs = [step.move_pages for step in self.steps]
        return None if None in costs else sum(cost for cost in costs if cost is not None)


class _Draft:
    # A plan in the making.
    def __init__(self, survey: Survey, operation: Operation, goal: Goal) -> None:
        self.survey = survey
        self.operation = operation
        self.goal = goal
        self.steps: list[Step] = []
        self.spare: list[Step] = []
        self.already: list[int] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.explanations: dict[int, Explanation] = {}


def make_plan(
    survey: Survey,
    operation: Operation,
    goal: str | Goal,
    *,
    zone: str | None = None,
    node: int | None = None,
    keep_free: int | None = None,
    explainer: Callable[[Survey, Sequence[int]], list[Explanation]] = explain,
) -> Plan:
    """Make a plan; what stands in its way is in its ``problems``.

    Args:
        survey: the machine.
        operation: which way.
        goal: how much or which, see :func:`parse_goal`.
        zone: offline: only blocks of that zone; online: the zone to go to (``movable``, or ``kernel`` or the name of a kernel
            zone).
        node: only blocks of that node, for an amount.
        keep_free: bytes that must stay available; by default a 20th of what is left, or the high watermarks if they are more.
        explainer: how blocks are explained.

    Raises:
        InvalidInput: a goal, zone or node that makes no sense on this machine.
    """
    wanted = parse_goal(goal, survey) if isinstance(goal, str) else goal
    draft = _Draft(survey, operation, wanted)
    candidates = _candidates(draft, zone, node)
    if operation is Operation.OFFLINE:
        for known in explainer(survey, [block.id for block in candidates]):
            draft.explanations[known.block.id] = known
        _choose(draft, _offline_steps(draft, candidates))
        floor = _check_floor(draft, keep_free)
        _check_moves(draft)
    else:
        _choose(draft, _online_steps(draft, candidates, zone))
        floor = None
    return _finish(draft, floor)


def _candidates(draft: _Draft, zone: str | None, node: int | None) -> list[Block]:
    survey, goal = draft.survey, draft.goal
    if node is not None and not any(node in (block.nodes or (0,)) for block in survey.blocks):
        raise InvalidInput(node, "--node", "a node that has memory blocks")
    named = [survey.by_id[number] for number in goal.ids] if goal.size is None else list(survey.blocks)
    state = draft.operation.from_state
    if goal.size is None:
        draft.already += [int(block.id) for block in named if block.state == ("offline" if state == "online" else "online")]
        for block in named:
            if block.state not in {"online", "offline"}:
                draft.problems.append(f"memory{block.id}: {block.trouble or f'it is {block.state}'}")
    found = [block for block in named if block.state == state and (node is None or node in (block.nodes or (0,)))]
    if draft.operation is Operation.OFFLINE and zone is not None:
        known = {word for block in survey.blocks for word in block.valid_zones or ()} | {one.name for one in survey.zones}
        if zone.lower() not in {word.lower() for word in known}:
            raise InvalidInput(zone, "--zone", f"one of {', '.join(sorted(known - {'none'}))}")
        others = [block.id for block in found if (block.zone or "").lower() != zone.lower()]
        if others and goal.size is None:
            draft.problems.append(f"memory{format_ids(others)}: not in zone {zone}")
        found = [block for block in found if (block.zone or "").lower() == zone.lower()]
    return found


def _offline_steps(draft: _Draft, candidates: list[Block]) -> list[Step]:
    steps = []
    for block in candidates:
        known = draft.explanations[block.id]
        if known.verdict is Verdict.NO:
            if draft.goal.size is None:
                draft.problems.append(f"memory{block.id}: {known.sentence}")
            continue
        if known.verdict in {Verdict.YES, Verdict.COSTS, Verdict.UNKNOWN}:
            zone = block.zone or ""
            steps.append(Step(block, known.node, zone, "offline", known.verdict, known.sentence, known.move_pages))
    return sorted(steps, key=_price)


def _price(step: Step) -> tuple[bool, int, bool, int]:
    return step.risky, step.move_pages or 0, step.zone != "Movable", -step.block.id


def _online_steps(draft: _Draft, candidates: list[Block], zone: str | None) -> list[Step]:
    if zone is not None and zone.lower() not in _ZONE_WORDS:
        raise InvalidInput(zone, "--zone", "movable, or kernel")
    word = "online" if zone is None else _ZONE_WORDS[zone.lower()]
    steps = []
    for block in candidates:
        zones = block.valid_zones or ()
        kernel = [name for name in zones if name != "Movable"]
        target = {"online": zones[:1], "online_movable": ["Movable"], "online_kernel": kernel[:1]}[word]
        steps.append(Step(block, draft.survey.node_of(block), target[0] if target else "", word))
    return steps


def _choose(draft: _Draft, steps: list[Step]) -> None:
    if draft.goal.size is None:
        draft.steps = steps
        if not steps and not draft.already and not draft.problems:
            draft.problems.append("nothing is left to do")
    else:
        _choose_so_much(draft, steps, draft.goal.size)
    if risky := [step.block.id for step in draft.steps if step.risky]:
        draft.warnings.append(f"nobody can know whether memory{format_ids(risky)} will go")


def _choose_so_much(draft: _Draft, steps: list[Step], size: int) -> None:
    number = size // draft.survey.block_size
    draft.steps, draft.spare = steps[:number], steps[number:]
    if len(steps) < number:
        have = format_size(len(steps) * draft.survey.block_size) if steps else "nothing"
        verb = "go offline" if draft.operation is Operation.OFFLINE else "come online"
        draft.problems.append(f"{format_size(size)} were asked for, and {have} can {verb}")
        if draft.operation is Operation.ONLINE:
            missing = size - len(steps) * draft.survey.block_size
            draft.warnings.append(
                f"{format_size(missing)} would have to be added first, which takes {format_size(missing // MEMMAP_SHARE)} of the "
                "memory that is there for its memmap, unless memmap_on_memory is in use"
            )


def _check_floor(draft: _Draft, keep_free: int | None) -> int | None:
    available = draft.survey.meminfo.get("MemAvailable")
    total = draft.survey.meminfo.get("MemTotal")
    if not draft.steps:
        return keep_free
    if available is None or total is None:
        if keep_free is None:
            draft.warnings.append("how much would be left available is not known: /proc/meminfo can't be read")
        elif keep_free:
            draft.problems.append(f"whether {format_size(keep_free)} stay free is not known: /proc/meminfo can't be read")
        return keep_free
    size = len(draft.steps) * draft.survey.block_size
    floor = keep_free
    if floor is None:
        marks = sum(zone.high for zone in draft.survey.zones) * draft.survey.page_size
        floor = max((total - size) // FLOOR_SHARE, marks)
    if available - size < floor:
        left, least = (format_size(max(0, number) >> 20 << 20) for number in (available - size, floor))
        draft.problems.append(f"{format_size(size)} less would leave {left} available, and the floor is {least} (--keep-free)")
    return floor


def _check_moves(draft: _Draft) -> None:
    # Pages of one node go to other nodes, and all of them need room there at once.
    survey = draft.survey
    leaving = {step.block.id for step in draft.steps}
    needed: dict[tuple[int, ...], int] = {}
    for step in draft.steps:
        known = draft.explanations[step.block.id]
        nodes = survey.targets(step.node)
        needed[nodes] = needed.get(nodes, 0) + (known.move_at_most or 0)
    for nodes, pages in needed.items():
        free = [survey.free_pages(node) for node in nodes]
        if None in free or not pages:
            continue
        gone = sum(
            (known.pages or {}).get(FrameKind.FREE, 0)
            for number, known in draft.explanations.items()
            if number in leaving and known.node in nodes
        )
        room = sum(number for number in free if number is not None) - gone
        if pages > room:
            where = f"node {format_ids(nodes)}"
            draft.warnings.append(
                f"{pages} pages must move to {where}, where {max(0, room)} are free: the kernel must reclaim others"
            )


def _finish(draft: _Draft, floor: int | None) -> Plan:
    survey = draft.survey
    available = survey.meminfo.get("MemAvailable")
    sign = -1 if draft.operation is Operation.OFFLINE else 1
    size = sign * len(draft.steps) * survey.block_size
    left = _left(draft, sign)
    ratio, after = _ratio([(one.zone, one.present) for one in left]), _ratio([(one.zone, one.present_after) for one in left])
    if after is not None and after > SAFE_RATIO and (ratio is None or after > ratio):
        draft.warnings.append(f"there will be {after:.1f} parts of movable memory to one of the kernel's; up to 3 go well")
    emptied = _emptied(left)
    if emptied:
        draft.warnings.append(f"node {format_ids(emptied)} will have no memory")
    return Plan(
        operation=draft.operation,
        goal=draft.goal,
        block_size=survey.block_size,
        steps=tuple(draft.steps),
        spare=tuple(draft.spare),
        already=tuple(draft.already),
        problems=tuple(draft.problems),
        warnings=tuple(draft.warnings),
        left=tuple(left),
        available=available,
        available_after=None if available is None else available + size,
        floor=floor,
        ratio=ratio,
        ratio_after=after,
        page_size=survey.page_size,
    )


def _left(draft: _Draft, sign: int) -> list[Left]:
    pages = draft.survey.block_pages
    present: dict[tuple[int, str], int] = {}
    free: dict[tuple[int, str], int] = {}
    for step in draft.steps:
        key = (step.node, step.zone)
        known = draft.explanations.get(step.block.id)
        present[key] = present.get(key, 0) + sign * pages
        # Pages that move take free ones elsewhere; where is not known, so they are not counted here.
        free[key] = free.get(key, 0) + (pages if sign > 0 else -((known and known.pages) or {}).get(FrameKind.FREE, 0))
    keys = [(zone.node, zone.name) for zone in draft.survey.zones]
    keys += [key for key in present if key not in keys]
    found = []
    for node, name in keys:
        zone = draft.survey.zone(node, name)
        had, had_free = (zone.present, zone.free) if zone else (0, 0)
        change, freed = present.get((node, name), 0), free.get((node, name), 0)
        if had or change:
            found.append(Left(node, name, had, max(0, had + change), had_free, max(0, had_free + freed)))
    return found


def _ratio(zones: list[tuple[str, int]]) -> float | None:
    movable = sum(present for name, present in zones if name == "Movable")
    kernel = sum(present for name, present in zones if name not in {"Movable", "Device"})
    return movable / kernel if kernel else None


def _emptied(left: list[Left]) -> list[int]:
    nodes = {one.node for one in left}
    return sorted(
        node
        for node in nodes
        if sum(one.present for one in left if one.node == node) and not sum(one.present_after for one in left if one.node == node)
    )
