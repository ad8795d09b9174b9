"""A finding as a drawing: a lane for each thread, time downwards, and who waits for whom in the end."""

from __future__ import annotations

from html import escape

from memhp.explore.findings import Finding

__all__ = ["drawing"]

_LANE, _ROW, _TOP, _LEFT, _CHARACTER = 340, 22, 70, 50, 6.7
_STYLE = (
    "text{font:12px monospace;fill:#222}.head{font-weight:bold}.why{font:13px sans-serif}"
    ".lane{stroke:#ccc}.step{fill:#4a78b5}.choice{fill:#8a5fb0}.wait{fill:#c0392b}.number{fill:#999}"
    ".edge{stroke:#c0392b;stroke-width:1.5;fill:none;marker-end:url(#tip)}"
)
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#c0392b"/></marker></defs>'
)


def drawing(finding: Finding) -> str:
    """Give the finding as an SVG document."""
    used = [index for index in range(len(finding.names)) if any(line.task == index for line in finding.lines)]
    lanes = {index: _LEFT + place * _LANE for place, index in enumerate(used)}
    height = _TOP + (len(finding.lines) + 2) * _ROW
    why = finding.headline
    width = int(max(_LEFT + _LANE * len(used), _LEFT + len(why) * _CHARACTER))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape(why)}</title><style>{_STYLE}</style>",
        _TIP,
        f'<text class="why" x="10" y="20">{escape(why)}</text>',
    ]
    for index, x in lanes.items():
        parts.append(f'<line class="lane" x1="{x}" y1="{_TOP - 10}" x2="{x}" y2="{height - 10}"/>')
        parts.append(f'<text class="head" x="{x - 4}" y="{_TOP - 18}">{escape(finding.names[index])}</text>')
    waits: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(finding.lines):
        x, y = lanes[line.task], _TOP + number * _ROW
        kind = "wait" if line.waits else "choice" if line.choice >= 0 else "step"
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{x + 10}" y="{y + 4}">{escape(f"waits: {line.text}" if line.waits else line.text)}</text>')
        if line.waits:
            waits[finding.names[line.task]] = (x, y)
        else:
            parts.append(f'<text class="number" x="10" y="{y + 4}">{number + 1}</text>')
    parts += _edges(finding, waits)
    return "\n".join([*parts, "</svg>\n"])


def _edges(finding: Finding, waits: dict[str, tuple[int, int]]) -> list[str]:
    edges = []
    for one in finding.blocked:
        for other in one.by:
            if one.task in waits and other in waits:
                (x1, y1), (x2, y2) = waits[one.task], waits[other]
                low = max(y1, y2) + 18
                edges.append(f'<path class="edge" d="M{x1} {y1 + 5}C{x1} {low} {x2} {low} {x2} {y2 + 6}"/>')
    return edges
