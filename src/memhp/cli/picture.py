"""What people and programs look at instead of a table: the machine as JSON, as a map in the terminal, and as SVG."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from memhp.abi.tree import DirTree
from memhp.host.block import Block
from memhp.host.inventory import Host, Inventory
from memhp.units import format_ids, format_size

__all__ = ["draw_map", "draw_svg", "picture", "to_json"]

SCHEMA = "memhp.list/1"
_PER_ROW = 64
_MOST_ROWS = 48

_LOOKS = {
    # sign: what it means, its colour on a terminal, its colour in SVG
    "d": ("online in DMA", "36", "#7fb2d9"),
    "3": ("online in DMA32", "36", "#4f93c9"),
    "N": ("online in Normal", "34", "#2b6ca3"),
    "H": ("online in Highmem", "34", "#1d4b73"),
    "M": ("online in Movable", "32", "#4c9f54"),
    "!": ("online, and can't go offline: it lies in several zones or nodes", "31", "#c0504d"),
    "#": ("online; the zone isn't known", "35", "#8a6fae"),
    ">": ("going offline", "33", "#d9a441"),
    ".": ("offline", "90", "#dddddd"),
    "?": ("its state can't be read", "35", "#b9a0d0"),
    "~": ("several blocks that differ", "37", "#999999"),
}
_ZONES = {"DMA": "d", "DMA32": "3", "Normal": "N", "Highmem": "H", "Movable": "M"}
_STATES = {"offline": ".", "going-offline": ">", "": "?"}


def picture(root: str, svg: str | None, *, as_json: bool) -> str:
    """Read the machine below ``root`` and give the text to print; with ``svg`` that file is written instead.

    Raises:
        HostError: the machine can't be read.
        OSError: the file can't be written.
    """
    inventory = Host(DirTree(root or "/")).inventory()
    if as_json:
        return to_json(inventory)
    if svg is not None:
        Path(svg).write_text(draw_svg(inventory), encoding="utf-8")
        return ""
    return draw_map(inventory, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def to_json(inventory: Inventory) -> str:
    """Write everything that is known: numbers in bytes, each key always there, null for what isn't known."""
    policy = inventory.policy
    document = {
        "schema": SCHEMA,
        "block_size": inventory.block_size,
        "online_bytes": inventory.online_bytes,
        "offline_bytes": inventory.block_size * len(inventory.blocks) - inventory.online_bytes,
        "nodes": list(inventory.nodes),
        "policy": {name: getattr(policy, name) for name in policy._fields},
        "deconfigured": list(inventory.deconfigured),
    }
    # A line for each block: such a file can be read, compared and searched.
    blocks = ",\n  ".join(json.dumps(_facts(block)) for block in inventory.blocks)
    return f'{json.dumps(document)[:-1]}, "blocks": [\n  {blocks}\n]}}\n'


def _facts(block: Block) -> dict[str, object]:
    verdict, why = block.verdict
    return {
        "id": block.id,
        "start": block.start,
        "size": block.size,
        "state": block.state or None,
        "online": block.online if block.state else None,
        "nodes": list(block.nodes),
        "zone": block.zone,
        "valid_zones": None if block.valid_zones is None else list(block.valid_zones),
        "removable": block.removable,
        "phys_device": block.phys_device,
        "verdict": verdict,
        "why": why,
    }


def draw_map(inventory: Inventory, *, colours: bool = False) -> str:
    """Draw a map with one sign for each block, or for several where there are too many."""
    group = _group(inventory)
    lines = [_title(inventory)]
    for node, blocks in _by_node(inventory):
        lines += ["", _node_title(node, blocks)]
        for number, row in _rows(blocks, group):
            lines.append(f"  memory{number:<8} {_coloured(row) if colours else row}")
    signs = {sign for _, blocks in _by_node(inventory) for _, row in _rows(blocks, group) for sign in row}
    lines += ["", f"  one sign is {'one block' if group == 1 else f'{group} blocks'} of {format_size(inventory.block_size)}"]
    lines += [f"  {_coloured(sign) if colours else sign}  {_LOOKS[sign][0]}" for sign in _LOOKS if sign in signs]
    return "\n".join(lines) + "\n"


def _title(inventory: Inventory) -> str:
    whole = inventory.block_size * len(inventory.blocks)
    state = "all online" if inventory.online_bytes == whole else f"{format_size(inventory.online_bytes)} online"
    return f"{format_size(whole)} in {len(inventory.blocks)} blocks of {format_size(inventory.block_size)}, {state}"


def _node_title(node: str, blocks: list[Block]) -> str:
    size = sum(block.size for block in blocks)
    online = sum(block.size for block in blocks if block.online)
    return f"{node}: {format_size(size)}, {'all' if online == size else format_size(online)} online"


def _by_node(inventory: Inventory) -> list[tuple[str, list[Block]]]:
    found: dict[tuple[int, ...], list[Block]] = {(node,): [] for node in inventory.nodes}
    for block in inventory.blocks:
        found.setdefault(block.nodes, []).append(block)
    names = {nodes: f"node {format_ids(nodes)}" if nodes else "no node" for nodes in found}
    return [(names[nodes], found[nodes]) for nodes in sorted(found)]


def _group(inventory: Inventory) -> int:
    group = 1
    while len(inventory.blocks) > group * _PER_ROW * _MOST_ROWS:
        group *= 2
    return group


def _rows(blocks: list[Block], group: int) -> Iterator[tuple[int, str]]:
    # A row ends at a hole in the addresses.
    run: list[Block] = []
    for block in [*blocks, None]:
        if run and (block is None or block.id != run[-1].id + 1 or len(run) == group * _PER_ROW):
            yield run[0].id, "".join(_sign(run[at : at + group]) for at in range(0, len(run), group))
            run = []
        if block is not None:
            run.append(block)


def _sign(blocks: list[Block]) -> str:
    signs = {_sign_of(block) for block in blocks}
    return signs.pop() if len(signs) == 1 else "~"


def _sign_of(block: Block) -> str:
    if block.verdict[0] == "no":
        return "!"
    if block.state in _STATES:
        return _STATES[block.state]
    return _ZONES.get(block.zone or "", "#") if block.online else "?"


def _coloured(signs: str) -> str:
    return "".join(f"\x1b[{_LOOKS[sign][1]}m{sign}\x1b[0m" for sign in signs)


_CELL = 10
_LEFT = 120
_LINE = 18


def draw_svg(inventory: Inventory) -> str:
    """Draw the same map as a picture; each block has its facts as a tooltip."""
    shapes: list[str] = []
    y = _LINE
    shapes.append(_text(0, y, _title(inventory), bold=True))
    used: set[str] = set()
    for node, blocks in _by_node(inventory):
        y += 2 * _LINE
        shapes.append(_text(0, y, _node_title(node, blocks)))
        for number, row in _svg_rows(blocks):
            y += _CELL + 2
            shapes.append(_text(0, y + _CELL - 1, f"memory{number}", small=True))
            for at, block in enumerate(row):
                sign = _sign_of(block)
                used.add(sign)
                shapes.append(_rect(_LEFT + at * (_CELL + 1), y, sign, _tooltip(block)))
        y += _CELL
    for sign, (meaning, _, _) in _LOOKS.items():
        if sign in used:
            y += _LINE
            shapes += [_rect(0, y, sign, meaning), _text(_CELL + 6, y + _CELL - 1, meaning, small=True)]
    size = f'width="{_LEFT + _PER_ROW * (_CELL + 1)}" height="{y + 2 * _CELL}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>"]) + "\n"


def _svg_rows(blocks: list[Block]) -> Iterator[tuple[int, list[Block]]]:
    row: list[Block] = []
    for block in blocks:
        if row and (block.id != row[-1].id + 1 or len(row) == _PER_ROW):
            yield row[0].id, row
            row = []
        row.append(block)
    if row:
        yield row[0].id, row


def _tooltip(block: Block) -> str:
    zones = "/".join(block.valid_zones) if block.valid_zones else "not known"
    verdict, why = block.verdict
    end = block.end - 1
    return f"memory{block.id} [{block.start:#x}-{end:#x}] {block.state or '?'}, zones {zones}; goes offline: {verdict}, {why}"


def _rect(x: int, y: int, sign: str, title: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{_LOOKS[sign][2]}" stroke="#888" stroke-width="0.5">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: int, y: int, text: str, *, bold: bool = False, small: bool = False) -> str:
    style = (' font-weight="bold"' if bold else "") + (' font-size="10"' if small else "")
    return f'<text x="{x}" y="{y}"{style}>{escape(text)}</text>'
