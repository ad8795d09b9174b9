"""What a scenario expects, decoded: of a step, or in the end."""

from __future__ import annotations

from memhp.scenario import words
from memhp.scenario.model import Expectations, errno_number
from memhp.scenario.reader import Value

__all__ = ["expectations", "expectations_of_nothing"]

_KEYS = ("result", "text", "trace", "uevents", "files", "blocks", "lockdep", "order")


def expectations(value: Value) -> Expectations:
    """Read what is expected of a step: its result alone, or a mapping.

    Raises:
        ScenarioError: a malformed one, with file and line.
    """
    if not value.is_mapping:
        return Expectations(value.line, result=_result(value))
    fields = value.fields(_KEYS)
    return Expectations(
        line=value.line,
        result=_result(fields["result"]) if "result" in fields else None,
        text=fields["text"].text() if "text" in fields else None,
        trace=_lines(fields.get("trace")),
        uevents=_lines(fields.get("uevents")),
        files=tuple((key.text(), given.text()) for key, given in fields["files"].items()) if "files" in fields else (),
        blocks=tuple((words.blocks(key), _state(given)) for key, given in fields["blocks"].items()) if "blocks" in fields else (),
        lockdep=words.count(fields["lockdep"]) if "lockdep" in fields else None,
        as_written="order" in fields and fields["order"].choice(("any", "written")) == "written",
    )


def expectations_of_nothing(value: Value, where: str) -> Expectations:
    """Read what is expected ``where`` nothing is done that could have a result or a text; raises as :func:`expectations`."""
    decoded = expectations(value)
    if decoded.result is not None or decoded.text is not None:
        given = {key.text(): key for key, _ in value.items()} if value.is_mapping else {}
        given.get("result", given.get("text", value)).fail(f"no result or text {where}")
    return decoded


def _result(value: Value) -> str:
    word = value.text()
    if word != "ok" and not errno_number(word):
        value.fail("ok, or the name of an errno such as EPERM")
    return word


def _state(value: Value) -> str:
    return value.choice(("online", "offline", "going-offline", "absent"))


def _lines(value: Value | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(" ".join(line.text().split()) for line in value.elements())
