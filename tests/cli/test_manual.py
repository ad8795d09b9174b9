"""Man pages say what the commands say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from memhp.cli import COMMANDS, REPLACEMENTS
from memhp.cli.manual import man_pages

SHARE = Path(__file__).parents[2] / "share"
MAN = SHARE / "man" / "man1"


def test_the_pages_are_up_to_date() -> None:
    """If this fails: scripts/make-manual."""
    assert {path.name: path.read_text(encoding="utf-8") for path in MAN.glob("*.1")} == man_pages()


def test_every_command_has_a_page() -> None:
    """And memhp itself."""
    assert {path.name for path in MAN.glob("*.1")} == {"memhp.1", *(f"memhp-{name}.1" for name in [*COMMANDS, *REPLACEMENTS])}


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
@pytest.mark.parametrize("path", sorted(MAN.glob("*.1")), ids=lambda path: path.name)
def test_pages_are_formatted_without_a_warning(path: Path) -> None:
    """As man does it."""
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", path], check=False, capture_output=True, text=True)  # noqa: S607
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_has_every_option_of_its_command() -> None:
    """Those of lsmem and memhp's own; the words are the help's."""
    lines = man_pages()["memhp-list.1"].splitlines()
    at = lines.index("\\fB\\-o\\fR, \\fB\\-\\-output\\fR \\fIlist\\fR")
    assert lines[at + 1] == "output columns"
    options = [line for line in lines if line.startswith("\\fB\\-")]
    assert len(options) == 16
