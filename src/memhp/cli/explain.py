"""``memhp explain``: will a block go offline, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memhp.abi.tree import DirTree
from memhp.cli.text import columns, common_options, guarded, human, print_json, sysroot_of
from memhp.errors import InvalidInput
from memhp.host.explain import Explanation, Verdict, explain
from memhp.host.inventory import Host
from memhp.host.survey import Survey
from memhp.units import Pfn, format_ids, format_mem, parse_ids

if TYPE_CHECKING:
    import argparse

__all__ = ["configure", "main", "to_json"]

_SCHEMA = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Say of each memory block whether it would go offline, and why not. Nothing is changed. Without root only a part can be "
        "known, and the rest is called unknown. docs/explain.md says what each verdict rests on."
    )
    parser.add_argument(
        "blocks", metavar="BLOCKS", nargs="?", help="such as 32-35,40: these, in detail; default: all, in a table"
    )
    parser.add_argument("--owners", action="store_true", help="also say which cgroups and processes hold the pages")
    common_options(parser)


def main(options: argparse.Namespace) -> int:
    """Print what is known of the blocks; gives the exit code."""
    return guarded(lambda: _explain(options))


def _explain(options: argparse.Namespace) -> int:
    survey = Survey.take(Host(DirTree(sysroot_of(options))))
    ids = None if options.blocks is None else parse_ids(options.blocks.replace("memory", ""), "BLOCKS")
    if ids == []:
        raise InvalidInput(options.blocks, "BLOCKS", "blocks such as 32-35,40; nothing at all means all of them")
    known = explain(survey, ids)
    if options.owners:
        known = [_with_owners(survey, one) for one in known]
    if options.json:
        print_json(to_json(survey, known))
    else:
        lines = _table(known) if ids is None else [line for one in known for line in _detail(survey, one)]
        print("\n".join([*lines, *([""] if ids is None else []), *_summary(survey, known)]))
    return 0


def _with_owners(survey: Survey, known: Explanation) -> Explanation:
    from memhp.host.owners import owners_of  # noqa: PLC0415 - only if it is asked for

    return known._replace(owners=owners_of(survey, known.block.id, known.first_stop)) if known.pages else known


def _table(known: Sequence[Explanation]) -> list[str]:
    rows = [["BLOCK", "NODE", "ZONE", "VERDICT", "MOVE", "WHY"]]
    for one in known:
        why = "; ".join(reason.text for reason in one.reasons)
        move = _moves(one) if one.verdict in {Verdict.YES, Verdict.COSTS, Verdict.UNKNOWN} else ""
        owners = f" ({', '.join(f'{who}: {pages}' for who, pages in one.owners[:3])})" if one.owners else ""
        rows.append([str(one.block.id), str(one.node), one.block.zone or "-", one.verdict.value, move, f"{why}{owners}".strip()])
    return columns(rows, right=frozenset({0, 4}))


def _moves(one: Explanation) -> str:
    if one.move_pages is None:
        return "?"
    return str(one.move_pages) if one.move_at_most == one.move_pages else f"{one.move_pages}-{one.move_at_most}"


def _detail(survey: Survey, one: Explanation) -> list[str]:
    block = one.block
    place = format_mem(Pfn(survey.first_pfn(block)), survey.block_pages)
    lines = [f"memory{block.id} {place}, node {one.node}, {block.zone or 'no single zone'}: {one.verdict.value}"]
    lines += [f"  because   {_reason(reason)}" for reason in one.reasons]
    if one.pages is not None:
        counts = sorted(one.pages.items(), key=lambda item: -item[1])
        lines.append(f"  pages     {', '.join(f'{kind}: {number}' for kind, number in counts)}")
    if one.move_at_most:
        where = ", ".join(f"node {node} ({'?' if free is None else free} free)" for node, free in one.targets)
        lines.append(f"  to move   {_moves(one)} pages, to {where}")
    lines += [f"  held by   {who}: {pages} pages" for who, pages in one.owners]
    lines += [f"  not seen  {doubt}" for doubt in one.doubts]
    return [*lines, ""]


def _reason(reason: Any) -> str:
    from memhp.errors import errno_name  # noqa: PLC0415

    return f"{reason.text} ({errno_name(reason.errno)})" if reason.errno else str(reason.text)


def _summary(survey: Survey, known: Sequence[Explanation]) -> list[str]:
    lines = []
    words = {
        Verdict.YES: "would go, nothing has to move",
        Verdict.COSTS: "would go, pages move",
        Verdict.NO: "would not go",
        Verdict.UNKNOWN: "can't be known",
        Verdict.OFFLINE: "offline already",
        Verdict.BUSY: "going offline now",
    }
    for verdict, text in words.items():
        ids = [one.block.id for one in known if one.verdict is verdict]
        if ids:
            lines.append(f"{human(len(ids) * survey.block_size):>9}  {verdict.value:<8} {text}: {format_ids(ids)}")
    return [*lines, "Pins on pages, callbacks that may refuse, and what changes from now on can't be seen."]


def to_json(survey: Survey, known: Sequence[Explanation]) -> dict[str, Any]:
    """Give what ``--json`` prints: all keys always there, pages and pfns as integers, null where nothing is known."""
    return {
        "schema": _SCHEMA,
        "block_size": survey.block_size,
        "page_size": survey.page_size,
        "blocks": [_entry(one) for one in known],
    }


def _entry(one: Explanation) -> dict[str, Any]:
    return {
        "id": one.block.id,
        "node": one.node,
        "zone": one.block.zone,
        "state": one.block.state,
        "verdict": one.verdict.value,
        "reasons": [
            {"cause": reason.cause.value, "text": reason.text, "errno": reason.errno, "pfn": reason.pfn, "pages": reason.pages}
            for reason in one.reasons
        ],
        "doubts": list(one.doubts),
        "pages": None if one.pages is None else {kind.label: number for kind, number in one.pages.items()},
        "move_pages": one.move_pages,
        "move_at_most": one.move_at_most,
        "first_stop": one.first_stop,
        "targets": [{"node": node, "free_pages": free} for node, free in one.targets],
        "owners": [{"owner": who, "pages": pages} for who, pages in one.owners],
    }
