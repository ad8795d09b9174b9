"""What is said when an expectation does not hold, whoever played the scenario."""

from __future__ import annotations

import difflib
from typing import Any

from memhp.scenario.model import errno_number

__all__ = ["failure", "same_result"]


def failure(
    file: str, line: int, what: str, expected: str | list[str], actual: str | list[str], message: str = ""
) -> dict[str, Any]:
    """Make the fields of the event of an expectation that did not hold; lists get a difference."""
    diff: list[str] = []
    if isinstance(expected, list) and isinstance(actual, list):
        diff = [row.rstrip() for row in difflib.ndiff(expected, actual) if not row.startswith("?")]
    return {
        "file": file,
        "line": line,
        "what": what,
        "expected": expected,
        "actual": actual,
        "diff": diff,
        "message": message,
    }


def same_result(result: str, wanted: str) -> bool:
    """Compare results; some errnos have two names."""
    return result == wanted or 0 != errno_number(result) == errno_number(wanted)
