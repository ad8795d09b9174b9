"""What a study gives: a table as CSV or Parquet, and plots as PNG or SVG."""

from __future__ import annotations

import csv
import importlib.util
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memhp.errors import InvalidInput
from memhp.study.measure import Row
from memhp.study.plan import Study
from memhp.study.reasons import REASONS
from memhp.units import PAGE_SIZE, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FORMATS", "Group", "check_formats", "groups_of", "write_results"]

_NEEDED = {"parquet": "pyarrow", "png": "matplotlib", "svg": "matplotlib"}


class Group:
    """The runs with one combination of values, over all seeds.

    Attributes:
        label: the values of what varies.
        rows: the runs.
    """

    def __init__(self, label: str, rows: list[Row]) -> None:
        self.label = label
        self.rows = rows

    def mean(self, column: str) -> float:
        """Give the mean of a column over the seeds."""
        return statistics.fmean(row[column] for row in self.rows)

    def range(self, column: str) -> tuple[float, float]:
        """Give the least and the greatest value of a column."""
        values = [row[column] for row in self.rows]
        return min(values), max(values)

    def step(self, number: int) -> str:
        """Say how a step ended in these runs, how many pages moved meanwhile, and what stopped it."""
        ended = Counter(row[f"step {number}"] or "not played" for row in self.rows)
        runs = [f"{result} in {count} of {len(self.rows)}" for result, count in ended.most_common()]
        moved = self.mean(f"step {number} moved")
        stopped = Counter(found for row in self.rows if (found := row[f"step {number} stopped by"]))
        return "; ".join(
            [
                ", ".join(runs) if len(ended) > 1 else next(iter(ended)),
                *([f"{moved * PAGE_SIZE / 2**20:.1f} MiB moved"] if moved else []),
                *([f"stopped by {', '.join(stopped)}"] if stopped else []),
            ]
        )

    @property
    def stopped(self) -> dict[str, float]:
        """The blocks that stay, by reason, as shares of all; those that are 0 are left out."""
        blocks = self.mean("blocks")
        shares = {reason: self.mean(f"stopped by {reason}") / max(blocks, 1) for reason in REASONS}
        return {reason: share for reason, share in shares.items() if share}


def groups_of(study: Study, rows: list[Row]) -> list[Group]:
    """Put the rows that differ by their seed alone together."""
    found: dict[str, Group] = {}
    for row in rows:
        label = ", ".join(_shown(name, row[name]) for name in study.varied) or row["workload"] or "as it is"
        found.setdefault(label, Group(label, [])).rows.append(row)
    return list(found.values())


def _shown(name: str, value: Any) -> str:
    if name == "block_size":
        return format_size(value)
    if name == "fill":
        return f"{value:.0%} used"
    return str(value) if isinstance(value, str) else f"{name} {value}"


def check_formats(formats: tuple[str, ...]) -> None:
    """Refuse what can't be written, before a study runs for hours.

    Raises:
        InvalidInput: a format that there isn't, or whose library isn't installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise InvalidInput(name, "--format", f"some of {','.join(FORMATS)}")
        if name in _NEEDED and importlib.util.find_spec(_NEEDED[name]) is None:
            raise InvalidInput(name, "--format", f"{_NEEDED[name]} (pip install 'memhp[study]')")


def write_results(study: Study, rows: list[Row], directory: Path, formats: tuple[str, ...]) -> list[Path]:
    """Write the results in each of the formats into a directory, which is made if need be; gives the files.

    Raises:
        InvalidInput: as :func:`check_formats`.
        OSError: a file can't be written.
    """
    check_formats(formats)
    directory.mkdir(parents=True, exist_ok=True)
    return [path for name in formats for path in FORMATS[name](study, rows, directory)]


def _write_csv(study: Study, rows: list[Row], directory: Path) -> list[Path]:
    path = directory / "results.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return [path]


def _write_parquet(study: Study, rows: list[Row], directory: Path) -> list[Path]:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = directory / "results.parquet"
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    pq.write_table(table, path)
    return [path]


def _plots(kind: str) -> Callable[[Study, list[Row], Path], list[Path]]:
    def write(study: Study, rows: list[Row], directory: Path) -> list[Path]:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and heavy

        mpl.use("Agg")
        mpl.rcParams["svg.hashsalt"] = "memhp"  # the same results give the same file
        from matplotlib import pyplot as plt  # noqa: PLC0415

        groups = groups_of(study, rows)
        paths = []
        for name, draw in (("gone", _draw_gone), ("stopped", _draw_stopped)):
            figure, axes = plt.subplots(figsize=(9, 1.6 + 0.34 * len(groups)), layout="constrained")
            draw(axes, groups)
            axes.set_title(study.title)
            axes.set_yticks(range(len(groups)), [group.label for group in groups])
            axes.invert_yaxis()
            axes.set_xlim(0, 100)
            path = directory / f"{name}.{kind}"
            figure.savefig(path, metadata={"Date": None} if kind == "svg" else None)
            plt.close(figure)
            paths.append(path)
        return paths

    return write


def _draw_gone(axes: Axes, groups: list[Group]) -> None:
    places = range(len(groups))
    isolable = [100 * group.mean("isolable") / group.mean("blocks") for group in groups]
    gone = [100 * group.mean("share") for group in groups]
    spread = [[value - 100 * group.range("share")[0] for value, group in zip(gone, groups, strict=True)]]
    spread.append([100 * group.range("share")[1] - value for value, group in zip(gone, groups, strict=True)])
    axes.barh(places, isolable, color="#c6dbef", label="nothing unmovable in it")
    axes.barh(places, gone, height=0.5, color="#2171b5", xerr=spread, label="went offline, one after the other")
    axes.set_xlabel("% of the blocks (bars: mean, whiskers: range over the seeds)")
    axes.legend(loc="lower right")


def _draw_stopped(axes: Axes, groups: list[Group]) -> None:
    left = [0.0] * len(groups)
    for reason in ["gone", *REASONS]:
        shares = [100 * (group.mean("share") if reason == "gone" else group.stopped.get(reason, 0.0)) for group in groups]
        if any(shares):
            colour = "#dddddd" if reason == "gone" else None  # None: the next of the colours
            axes.barh(range(len(groups)), shares, left=left, label="went offline" if reason == "gone" else reason, color=colour)
            left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.set_xlabel("% of the blocks, by what stopped them")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


FORMATS: dict[str, Callable[[Study, list[Row], Path], list[Path]]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "png": _plots("png"),
    "svg": _plots("svg"),
}
"""What writes each format; gives the files."""
