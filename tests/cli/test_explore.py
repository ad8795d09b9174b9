"""``memhp explore``: what it prints, what it writes, and with which code it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from memhp.cli import main

SCENES = """
from memhp.locking import Mutex


def inversion(scene):
    a, b = Mutex("a"), Mutex("b")
    scene.thread("one", take, a, b)
    scene.thread("two", take, b, a)


def order(scene):
    a, b = Mutex("a"), Mutex("b")
    scene.thread("one", take, a, b)
    scene.thread("two", take, a, b)


def take(first, second):
    with first, second:
        pass
"""

LONELY = "title: t\nmachine: {nodes: [1GiB]}\nsteps:\n  - note: n\n"
STRING = re.compile(r"--replay '(\S+)'")


@pytest.fixture
def scenes(tmp_path: Path) -> str:
    file = tmp_path / "scenes.py"
    file.write_text(SCENES)
    return str(file)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["explore", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_function_that_makes_a_scene_is_explored(scenes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its verdict, the worst of which is the exit code; a finding comes with the string that plays it again."""
    code, out, _ = run(capsys, scenes)
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith("inversion: fails; ended at the first finding (optimal): ")
    assert lines[2] == "deadlock: one waits for b (acquire), held by two; two waits for a (acquire), held by one"
    assert lines[-1] == "order: holds; complete (optimal): 2 executions, 16 steps"


def test_a_schedule_string_plays_the_finding_again(scenes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows the same timeline."""
    _, out, _ = run(capsys, f"{scenes}:inversion")
    match = STRING.search(out)
    assert match is not None
    code, again, _ = run(capsys, scenes, "--replay", match[1])
    assert code == 1
    assert again.splitlines()[0] == "inversion: replay; replayed 2 steps"
    assert again.splitlines()[2:8] == out.splitlines()[2:8]


def test_a_replay_of_changed_code_is_not_decided(scenes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says where it diverged."""
    _, out, _ = run(capsys, f"{scenes}:inversion")
    match = STRING.search(out)
    assert match is not None
    Path(scenes).write_text(SCENES.replace("two", "second").replace("take, b, a)", "take, a, b)", 1))
    code, out, _ = run(capsys, scenes, "--replay", match[1])
    assert code == 3
    assert "diverged at step 2: expected second to acquire, got it waits: acquire a" in out


def test_a_function_can_be_named(scenes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind a colon; another name is bad input that lists those there are."""
    assert run(capsys, f"{scenes}:order")[0] == 0
    code, _, err = run(capsys, f"{scenes}:nothing")
    assert code == 2
    assert "whose one parameter is called scene (inversion, order)" in err


def test_json_has_everything(scenes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each scene."""
    _, out, _ = run(capsys, scenes, "--json")
    inversion, order = map(json.loads, out.splitlines())
    assert (inversion["verdict"], inversion["findings"][0]["kind"], order["verdict"], order["complete"]) == (
        "fails",
        "deadlock",
        "holds",
        True,
    )
    assert [(step["thread"], step["step"], step["waits"]) for step in inversion["findings"][0]["steps"]] == [
        ("one", "acquire a", False),
        ("two", "acquire b", False),
        ("one", "acquire b", True),
        ("two", "acquire a", True),
    ]


def test_a_finding_can_be_drawn(scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The drawing is well-formed and has the reason, the steps, and an arrow for each who waits for another."""
    file = tmp_path / "finding.svg"
    run(capsys, f"{scenes}:inversion", "--svg", str(file))
    root = ET.fromstring(file.read_text())  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert texts[1:] == ["one", "two", "acquire a", "1", "acquire b", "2", "waits: acquire b", "waits: acquire a"]
    assert len([path for path in root.iter(f"{space}path") if path.get("class") == "edge"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--strategy", "random", "--executions", "5"], 3, "sampled (random): 5 executions"),
        (["--strategy", "bounded"], 3, "bounded (at most 2 preemptions)"),
        (["--executions", "1"], 3, "bounded: 1 executions"),
        (["--strategy", "best"], 2, "strategy: 'best' is not valid; expected one of optimal, source, brute"),
        (["--executions", "0"], 2, "--executions: 0 is not valid; expected more than 0"),
        (["--replay", "x"], 2, "expected a schedule string as memhp explore prints it"),
    ],
)
def test_exit_codes(scenes: str, words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not proved is no success, and what is malformed is named."""
    found, out, err = run(capsys, f"{scenes}:order", *words)
    assert found == code
    assert says in out + err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("absent.py", None, "expected a Python file that exists"),
        ("broken.py", "1 / 0", "expected a file that can be imported (ZeroDivisionError: division by zero)"),
        ("empty.py", "x = 1", "expected a file with a function whose one parameter is called scene"),
        ("absent.yaml", None, "absent.yaml"),
        ("lonely.yaml", LONELY, "expected a scenario in which steps have a thread (thread: NAME)"),
    ],
)
def test_files_that_can_not_be_explored(
    tmp_path: Path, name: str, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clear error, never a traceback."""
    if text is not None:
        (tmp_path / name).write_text(text)
    code, _, err = run(capsys, str(tmp_path / name))
    assert code == 2
    assert says in err


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_scenario_with_threads_is_explored(capsys: pytest.CaptureFixture[str]) -> None:
    """What comes before the first thread is the setting; the rest happens in every order, and here it deadlocks."""
    code, out, _ = run(capsys, str(EXAMPLES / "deadlock.yaml"))
    assert code == 1
    assert (
        "deadlock: remover waits for memory32/device_lock (acquire), held by onliner; onliner waits for mem_hotplug_lock" in out
    )
    assert "confirmed, it deadlocks: mhx1:" in out


def test_a_large_scenario_hits_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """Pages, pins and a signal in every order are many executions; those that were asked for found nothing."""
    code, out, _ = run(capsys, str(EXAMPLES / "pinned.yaml"), "--executions", "30")
    assert code == 3
    assert out.startswith("pinned: undecided; bounded: 30 executions; 30 executions, ")
