"""What all executions of one exploration share: the numbers of their objects."""

from __future__ import annotations

__all__ = ["Registry"]


class Registry:
    """Names of objects as numbers, the same in every execution.

    An object is known by its name: executions make their objects anew. Two objects of one name count as one, which
    makes their steps depend on each other where they need not: more executions, none lost.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.names: list[str] = []
        """The name of each number."""

    def number(self, name: str) -> int:
        """Give the number of a name."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
        return number
