"""Rows of text as libsmartcols prints them, byte for byte: aligned, raw, as pairs and as JSON (observed on 2.42).

Cells are columns of texts, '' for an empty cell. Only what such tables need is here: no colours, no trees, and texts of
printable ASCII.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NUMBER", "STRING", "TRUTH", "Column", "aligned", "json", "pairs", "raw"]

STRING, NUMBER, TRUTH = 0, 1, 2
"""What a column's cells are in JSON."""


class Column:
    """One column: its heading, its cells, how it is aligned, and the width that it is given if there is room."""

    __slots__ = ("cells", "hint", "kind", "name", "right")

    def __init__(self, name: str, cells: Sequence[str], *, right: bool = True, hint: int = 0, kind: int = STRING) -> None:
        self.name = name
        self.cells = cells
        self.right = right
        self.hint = hint
        self.kind = kind


def aligned(columns: Sequence[Column], *, headings: bool = True, terminal: int = 0) -> str:
    """Print in columns; ``terminal`` is the width of the terminal, 0 if it isn't one."""
    widths = [_width(column, headings=headings) for column in columns]
    spare = terminal - sum(widths) - len(widths) + 1
    while spare > 0:  # on a terminal, columns with a hint grow up to it, the last first
        growing = [index for index in reversed(range(len(columns))) if widths[index] < columns[index].hint]
        if not growing:
            break
        for index in growing[:spare]:
            widths[index] += 1
        spare -= len(growing)
    shapes = [f"%{'' if column.right else '-'}{width}s" for column, width in zip(columns, widths, strict=True)]
    last, width = columns[-1], widths[-1]
    if not last.right or "" in last.cells:  # nothing is printed behind the last text of a line
        shapes[-1] = "%s"
    if last.right and "" in last.cells:
        cells = [cell and cell.rjust(width) for cell in last.cells]
        columns = [*columns[:-1], Column(last.name.rjust(width), cells)]
    return _lines(columns, " ".join(shapes) + "\n", headings=headings)


def _width(column: Column, *, headings: bool) -> int:
    least = len(column.name) if headings else 0
    widest = max(map(len, column.cells), default=0)
    if widest <= max(least, 1):
        return max(least, 1) if widest or headings else 0
    return max(widest, column.hint) if least < column.hint else widest


def raw(columns: Sequence[Column], *, headings: bool = True) -> str:
    """Print cells with one space between them."""
    return _lines(columns, " ".join(["%s"] * len(columns)) + "\n", headings=headings)


def pairs(columns: Sequence[Column]) -> str:
    """Print ``NAME="value"`` for each cell."""
    return _lines(columns, " ".join(f'{column.name}="%s"' for column in columns) + "\n", headings=False)


def _lines(columns: Sequence[Column], shape: str, *, headings: bool) -> str:
    head = shape % tuple(column.name for column in columns) if headings else ""
    return head + "".join([shape % row for row in zip(*(column.cells for column in columns), strict=True)])


def json(name: str, columns: Sequence[Column]) -> str:
    """Print an object whose one member is a list of rows."""
    shapes, cells = zip(*(_json_column(column) for column in columns), strict=True)
    shape = "{\n" + ",\n".join(shapes) + "\n      }"
    rows = ",".join([shape % row for row in zip(*cells, strict=True)])
    return f'{{\n   "{name}": [\n      {rows}\n   ]\n}}\n'


def _json_column(column: Column) -> tuple[str, Sequence[str]]:
    # The shape of its line in an object, and what goes into it. The quotes are the shape's where no cell is null: that is faster.
    shape, cells = f'         "{column.name.lower()}": %s', column.cells
    if column.kind == NUMBER:
        return shape, [cell or "null" for cell in cells]
    if column.kind == TRUTH:
        return shape, ["true" if cell == "yes" else "false" for cell in cells]
    if "" in cells:
        return shape, [f'"{cell}"' if cell else "null" for cell in cells]
    return shape.replace("%s", '"%s"'), cells
