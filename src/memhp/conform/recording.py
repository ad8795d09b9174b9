"""What a real kernel did in a scenario, kept in a small file, so that the comparison needs no kernel the next time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memhp.abi.state import changes
from memhp.conform.observation import Observed, apply
from memhp.errors import InvalidInput

__all__ = ["Recording", "fingerprint"]

_FORMAT = 1


def fingerprint(file: Path) -> str:
    """Tell one version of a scenario from another, by what the file says."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Recording:
    """A scenario on a real kernel.

    Attributes:
        release: as ``uname -r`` says.
        version: that of the package.
        scenario: the :func:`fingerprint` of the scenario that was played.
        steps: what was observed, the beginning first.
    """

    release: str
    version: str
    scenario: str
    steps: tuple[Observed, ...]

    def save(self, path: Path) -> None:
        """Write it, one step a line; a state is kept as its changes."""
        head = {"format": _FORMAT, "release": self.release, "version": self.version, "scenario": self.scenario}
        before: dict[str, str] = {}
        lines = []
        for step in self.steps:
            line: dict[str, Any] = {"number": step.number, "line": step.line, "shown": step.shown}
            line |= {key: value for key in ("result", "text", "heard") if (value := getattr(step, key))}
            difference = changes(before, step.state)
            if difference:
                line["state"] = difference
            before = step.state
            lines.append(json.dumps(line))
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".new")
        whole.write_text(f'{{"head": {json.dumps(head)},\n"steps": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
        whole.replace(path)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read it.

        Raises:
            InvalidInput: it is no recording, or one of another format.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            head, state, steps = data["head"], dict[str, str](), []
            if head["format"] != _FORMAT:
                raise InvalidInput(head["format"], str(path), f"a recording of format {_FORMAT}; record it again")
            for line in data["steps"]:
                apply(state, line.pop("state", {}))
                steps.append(Observed(**line, state=dict(state)))
            return cls(head["release"], head["version"], head["scenario"], tuple(steps))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(path.name, str(path), f"a recording of `memhp conform` ({error})") from error
