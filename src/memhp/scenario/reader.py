"""YAML that remembers where each value stands, so that an error can say file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml

from memhp.errors import InvalidInput, ScenarioError

__all__ = ["Value", "read_yaml"]

T = TypeVar("T")

_MAX_DEPTH = 32
_MAX_VALUES = 1_000_000
_SHALLOW = f"values nested at most {_MAX_DEPTH} deep, and at most {_MAX_VALUES:,} of them"


def read_yaml(path: Path) -> Value:
    """Read one YAML document.

    Raises:
        ScenarioError: the file can't be read, or is no YAML; with the line where that shows.
    """
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ScenarioError(name, name, 0, f"a file that can be read ({reason})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line, problem = _problem(error, text)
        raise ScenarioError(_line_of(text, line), name, line, f"YAML ({problem})") from error
    except RecursionError as error:
        raise ScenarioError("brackets", name, 1, _SHALLOW) from error
    if node is None:
        raise ScenarioError("", name, 1, "a scenario; the file is empty")
    _check_size(node, name)
    return Value(node, name, "scenario")


def _problem(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, str(error.reason)
    mark = getattr(error, "problem_mark", None)
    return (1 if mark is None else mark.line + 1), getattr(error, "problem", None) or str(error).partition("\n")[0]


def _check_size(root: yaml.Node, file: str) -> None:
    # With anchors a few lines can stand for a document without end, or one that is too large for any memory.
    todo = [(root, 0)]
    seen = 0
    while todo:
        node, depth = todo.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_VALUES:
            raise ScenarioError("anchors", file, int(node.start_mark.line) + 1, _SHALLOW)
        if isinstance(node, yaml.SequenceNode):
            todo += [(child, depth + 1) for child in node.value]
        elif isinstance(node, yaml.MappingNode):
            todo += [(child, depth + 1) for pair in node.value for child in pair]


def _line_of(text: str, line: int) -> str:
    lines = text.splitlines()
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


class Value:
    """One value of the document: a mapping, a list or a scalar, with its place."""

    def __init__(self, node: yaml.Node, file: str, place: str) -> None:
        self._node = node
        self.file = file
        self.place = place

    @property
    def line(self) -> int:
        """The line where it begins, counted from 1."""
        return int(self._node.start_mark.line) + 1

    def fail(self, expected: str) -> NoReturn:
        """Refuse the value.

        Raises:
            ScenarioError: always, with file, line and place.
        """
        raise ScenarioError(self.shown(), self.file, self.line, expected, self.place)

    def shown(self) -> object:
        """Give the value as an error shows it."""
        if isinstance(self._node, yaml.ScalarNode):
            return self._node.value
        return "a list" if isinstance(self._node, yaml.SequenceNode) else "a mapping"

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    def items(self) -> list[tuple[Value, Value]]:
        """Give a mapping's keys and values; a key that stands twice is refused."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fail("a mapping (key: value)")
        pairs = []
        seen: set[str] = set()
        for key_node, value_node in self._node.value:
            key = Value(key_node, self.file, self.place)
            name = key.text()
            if name in seen:
                key.fail("each key once")
            seen.add(name)
            pairs.append((key, Value(value_node, self.file, f"{self.place}: {name}" if self.place != "scenario" else name)))
        return pairs

    def fields(self, known: tuple[str, ...], required: tuple[str, ...] = ()) -> dict[str, Value]:
        """Give a mapping by name; unknown and missing keys are refused."""
        found = {}
        for key, value in self.items():
            if key.text() not in known:
                key.fail(f"one of the keys {', '.join(known)}")
            found[key.text()] = value
        for name in required:
            if name not in found:
                self.fail(f"a mapping with the key {name}")
        return found

    def elements(self) -> Iterator[Value]:
        """Give a list's values."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.fail("a list (- item)")
        for index, node in enumerate(self._node.value):
            yield Value(node, self.file, f"{self.place}[{index}]")

    def text(self) -> str:
        """Give a scalar as it is written."""
        if not isinstance(self._node, yaml.ScalarNode):
            self.fail("a single value")
        text = str(self._node.value)
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            self.fail("text without halves of surrogate pairs")
        return text

    def number(self) -> int:
        """Give a whole number."""
        try:
            return int(self.text(), 0)
        except ValueError:
            self.fail("a whole number")

    def boolean(self) -> bool:
        """Give true or false."""
        word = self.text()
        if word not in {"true", "false"}:
            self.fail("true or false")
        return word == "true"

    def choice(self, known: tuple[str, ...]) -> str:
        """Give one of a few words."""
        if self.text() not in known:
            self.fail(f"one of {', '.join(known)}")
        return self.text()

    def parsed(self, parse: Callable[[str, str], T]) -> T:
        """Give what ``parse(text, where)`` makes of it, its refusal with this value's line."""
        return self.checked(lambda: parse(self.text(), self.place))

    def checked(self, make: Callable[[], T]) -> T:
        """Give what ``make()`` gives, its refusal with this value's line."""
        try:
            return make()
        except InvalidInput as error:
            if isinstance(error, ScenarioError):
                raise
            raise ScenarioError(error.value, self.file, self.line, error.expected, error.where) from error

    def plain(self) -> object:
        """Give it as ordinary Python values."""
        if self.is_mapping:
            return {key.text(): value.plain() for key, value in self.items()}
        if self.is_list:
            return [value.plain() for value in self.elements()]
        if self._node.tag == "tag:yaml.org,2002:bool" and self.text() in {"true", "false"}:
            return self.boolean()
        return self.number() if self._node.tag == "tag:yaml.org,2002:int" else self.text()
