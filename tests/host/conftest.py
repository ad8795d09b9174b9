"""No test of userland writes to the machine that it runs on."""

from __future__ import annotations

from typing import Any

import pytest

from memhp import DirTree
from memhp.host.writer import ProcessWriter


@pytest.fixture(autouse=True)
def this_machine_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of writing to real files refuse the root directory, unless it is read-only anyway."""

    def guarded(original: Any) -> Any:
        def method(self: Any, *arguments: Any) -> Any:
            tree = self._tree if isinstance(self, ProcessWriter) else self
            assert str(tree.root) != "/" or not tree.writable, "a test tried to write to this machine"
            return original(self, *arguments)

        return method

    monkeypatch.setattr(ProcessWriter, "write", guarded(ProcessWriter.write))
    monkeypatch.setattr(DirTree, "write", guarded(DirTree.write))
