"""``memhp run``: exit codes, what it prints for people and for programs, and what it says of bad input."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import memhp
from memhp.cli import main

SMALL = """
title: One block
about: |
  It comes and goes.
machine: {nodes: [1GiB]}
callbacks:
  cache:
    priority: 10
    MEM_ONLINE: {allocate: {name: buffers, size: 1MiB, pinned: true}}
    MEM_GOING_OFFLINE: {free: buffers}
  guard: {MEM_GOING_OFFLINE: {answer: EBUSY, times: 1}}
  clumsy: {priority: -10, MEM_OFFLINE: {raise: out of luck}}
steps:
  - note: Memory is plugged in.
  - add: {size: 256MiB}
    as: new
  - online: {blocks: first, among: new}
    as: block
  - offline: block
    expect: EBUSY
  - read: $block/state
  - offline: block
    thread: worker
"""

PRINTED = """\
One block
  It comes and goes.
  (rules: as the kernel document says)

Before: the machine, 1 GiB online in 8 of 8 blocks of 128 MiB
  node 0  memory0      ########
  one sign is one block: # online, M online in ZONE_MOVABLE, u partly used, . offline, ~ mixed

Who takes part, in the order in which they are called: cache (priority 10), guard (priority 0), clumsy (priority -10)

-- Memory is plugged in.

1. add 256 MiB to node 0
   uevent add@/devices/system/memory/memory32 to memory33 (2 of them)
   = done: memory32-33

2. online blocks first, among new
   MEM_GOING_ONLINE    memory32
      cache            OK  TIME
      guard            OK  TIME
      clumsy           OK  TIME
   MEM_ONLINE          memory32
      cache            OK  TIME
                       it allocated buffers, 256 movable pages
      guard            OK  TIME
      clumsy           OK  TIME
   uevent online@/devices/system/memory/memory32
   = done: memory32

3. offline block
   MEM_GOING_OFFLINE   memory32
      cache            OK  TIME
                       it freed buffers, 256 pages
      guard            EBUSY  TIME
   MEM_CANCEL_OFFLINE  memory32
      cache            OK  TIME
      guard            OK  TIME
      clumsy           OK  TIME
   = EBUSY: memory32 [mem 0x100000000-0x107ffffff]: guard (priority 0) refused MEM_GOING_OFFLINE with EBUSY; it stays online

4. read $block/state
   = done: online

5. offline block [in thread worker]
   MEM_GOING_OFFLINE   memory32
      cache            OK  TIME
      guard            OK  TIME
      clumsy           OK  TIME
   MEM_OFFLINE         memory32
      cache            OK  TIME
      guard            OK  TIME
      clumsy           raised RuntimeError: out of luck  TIME
   uevent offline@/devices/system/memory/memory32
   = done (thread worker): memory32

After: the machine, 1 GiB online in 8 of 10 blocks of 128 MiB
  node 0  memory0      ########
          memory32     ..

5 steps, 17 calls of callbacks; everything was as expected.
"""

FAILING = SMALL.replace("expect: EBUSY", "expect: {result: EPERM, uevents: [offline@x]}")

FAILURES = """\
FAILED s.yaml:19: step 3: offline block
   expected: EPERM
   happened: EBUSY
   memory32 [mem 0x100000000-0x107ffffff]: guard (priority 0) refused MEM_GOING_OFFLINE with EBUSY; it stays online
FAILED s.yaml:20: uevents
   - expected   + happened
   - offline@x
"""


class Ran(NamedTuple):
    """What a run of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was printed, with times replaced."""
        return re.sub(r"\b[\d.]+ (us|ms)$", "TIME", self.out, flags=re.MULTILINE).splitlines()


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``memhp run s.yaml OPTIONS`` in a directory of its own, with the given text in the file."""

    def run(text: str, *options: str) -> Ran:
        (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        code = main(["run", "s.yaml", *options])
        return Ran(code, *capsys.readouterr())

    return run


# -- for people


def test_a_run_explains_itself(run: Run) -> None:
    """Title, machine, who takes part, each step with its calls, and how it ended."""
    ran = run(SMALL)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == PRINTED.splitlines()


def test_a_failed_expectation_is_exit_code_1(run: Run) -> None:
    """The failure stands where it happened, and the last line counts."""
    ran = run(FAILING)
    assert (ran.code, ran.err) == (1, "")
    assert [line for line in ran.lines if line.startswith("FAILED")] == [
        "FAILED s.yaml:19: step 3: offline block",
        "FAILED s.yaml:20: uevents",
    ]
    assert ran.lines[-1] == "5 steps, 17 calls of callbacks; 2 expectations failed."


def test_quiet_prints_only_what_did_not_hold(run: Run) -> None:
    """Nothing at all where everything held."""
    assert run(SMALL, "--quiet") == (0, "", "")
    assert run(FAILING, "--quiet") == (1, FAILURES, "")


def test_uevents_of_different_kinds_stand_on_lines_of_their_own(run: Run) -> None:
    """Blocks that come together make one line, and the node that comes with them another."""
    ran = run("machine: {nodes: [1GiB, 0]}\nsteps:\n- add: {size: 256MiB, node: 1}\n")
    assert [line for line in ran.lines if "uevent" in line] == [
        "   uevent add@/devices/system/memory/memory32 to memory33 (2 of them)",
        "   uevent add@/devices/system/node/node1",
    ]


def test_changes_of_nodes_are_said_in_words(run: Run) -> None:
    """The two nids of a call are a sentence to a person."""
    steps = """steps:
- add: {size: 256MiB, node: 1}
- online: {blocks: 32, type: online_movable}
- online: {blocks: 33, type: online_kernel}
- offline: 32
- offline: 33
"""
    ran = run(f"machine: {{nodes: [1GiB, 0]}}\ncallbacks: {{a: {{}}}}\n{steps}")
    assert [line.strip() for line in ran.lines if line.startswith(("   MEM_ONLINE", "   MEM_OFFLINE"))] == [
        "MEM_ONLINE          memory32  (node 1 gets its first memory in N_MEMORY)",
        "MEM_ONLINE          memory33  (node 1 gets its first memory in N_NORMAL_MEMORY)",
        "MEM_OFFLINE         memory32",
        "MEM_OFFLINE         memory33  (node 1 loses its last memory in N_NORMAL_MEMORY and N_MEMORY)",
    ]


def test_the_map_shows_each_block_with_a_sign(run: Run) -> None:
    """Online, movable, in use and offline differ; a row ends where the addresses have a hole."""
    steps = "steps:\n- add: {size: 512MiB}\n- online: {blocks: 32, type: online_movable}\n- online: 34\n"
    ran = run(f"machine: {{nodes: [1GiB]}}\n{steps}- allocate: {{name: x, pages: 1, blocks: 34}}\n")
    assert ran.lines[-5:-2] == [
        "After: the machine, 1280 MiB online in 10 of 12 blocks of 128 MiB",
        "  node 0  memory0      ########",
        "          memory32     M.u.",
    ]


def test_a_big_machine_has_a_small_map(run: Run) -> None:
    """Of a machine with 8,192 blocks a sign is 16 blocks, so the map stays on one screen."""
    ran = run("machine: {nodes: [1TiB], block_size: 128MiB}\nsteps: []\n")
    assert "  one sign is 16 blocks: # online, M online in ZONE_MOVABLE, u partly used, . offline, ~ mixed" in ran.lines
    assert len(ran.lines) < 40
    assert max(map(len, ran.lines)) < 120


def test_lockdep_is_shown_as_it_reports(run: Run) -> None:
    """The report stands below the step in which the order was seen."""
    ran = run("machine: {nodes: [1GiB], device_hotplug_lock: false}\nsteps:\n- add: {size: 128MiB}\n- online: 32\n")
    assert "   | WARNING: possible circular locking dependency detected" in ran.lines
    assert ran.code == 0


def test_a_message_of_several_lines_stays_below_its_step(run: Run) -> None:
    """The chain of waits of a deadlock is indented like the result that it belongs to."""
    ran = run(
        """
machine: {nodes: [1GiB], rules: "6.12", device_hotplug_lock: false, parameters: {memhp_default_state: offline}}
steps:
  - add: {size: 256MiB}
  - online: 32
  - allocate: {name: x, pages: 1, blocks: 32, pinned: true}
  - {offline: 32, thread: A}
  - {remove: 33, thread: B, expect: EDEADLK}
  - {online: 33, thread: C}
  - unpin: x
"""
    )
    found = next(number for number, line in enumerate(ran.lines) if "EDEADLK" in line)
    assert ran.lines[found].startswith("   = EDEADLK (thread B): B would wait for memory33/device_lock for ever; it holds ")
    assert ran.lines[found + 1 : found + 3] == [
        "       B waits for memory33/device_lock (acquire), held by C",
        "       C waits for mem_hotplug_lock (block new readers), held by B",
    ]


def test_colours_are_for_terminals_that_want_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal titles are bold and refusals red; NO_COLOR switches that off."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\033[1mOne block\033[0m" in run(SMALL).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in run(SMALL).out


# -- for programs

MACHINE_KEYS = {"event", "moment", "source", "block_size", "memory", "nodes", "blocks"}
SCHEMA: dict[str, set[str]] = {
    "scenario": {"event", "title", "about", "file", "rules"},
    "machine": MACHINE_KEYS,
    "callbacks": {"event", "registered"},
    "note": {"event", "line", "text"},
    "step": {"event", "number", "line", "verb", "thread", "text"},
    "call": {
        *("event", "action", "blocks", "start_pfn", "nr_pages", "status_change_nid_normal", "status_change_nid"),
        *("callback", "priority", "answer", "error", "seconds", "thread"),
    },
    "deed": {"event", "callback", "text"},
    "uevent": {"event", "action", "devpath", "subsystem", "seqnum"},
    "result": {"event", "number", "thread", "result", "message", "text"},
    "lockdep": {"event", "kind", "classes", "text"},
    "failure": {"event", "file", "line", "what", "expected", "actual", "diff", "message"},
    "end": {"event", "steps", "calls", "failures"},
}


def test_json_lines_follow_the_schema(run: Run) -> None:
    """One JSON object a line, each event with exactly its keys; all kinds of events occur here."""
    text = FAILING.replace("{nodes: [1GiB]}", "{nodes: [1GiB], device_hotplug_lock: false}")
    ran = run(text, "--json")
    assert (ran.code, ran.err) == (1, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert {event["event"] for event in events} == set(SCHEMA)
    for event in events:
        assert set(event) == SCHEMA[event["event"]]
    assert [event["event"] for event in events][:5] == ["scenario", "machine", "callbacks", "note", "step"]
    assert events[-1] == {"event": "end", "steps": 5, "calls": 17, "failures": 2}


def test_json_says_blocks_and_nodes_of_the_machine(run: Run) -> None:
    """The keys inside of a machine event are part of the schema too."""
    events = [json.loads(line) for line in run(SMALL, "--json").out.splitlines()]
    machine = next(event for event in events if event["event"] == "machine")
    assert set(machine["blocks"][0]) == {"id", "node", "state", "zones", "used_pages"}
    assert set(machine["nodes"]) == {"possible", "online", "has_normal_memory", "has_memory", "has_cpu"}
    callbacks = next(event for event in events if event["event"] == "callbacks")
    assert callbacks["registered"][0] == {"name": "cache", "priority": 10}


def test_json_goes_before_quiet(run: Run) -> None:
    """Programs get every event."""
    assert len(run(SMALL, "--json", "--quiet").out.splitlines()) > 20


# -- rules


@pytest.mark.parametrize(
    ("rules", "words", "prepares"),
    [
        ("documented", "as the kernel document says", False),
        ("6.1", "as Linux 6.1 does", False),
        ("6.12", "as Linux 6.12 does", True),
    ],
)
def test_rules_on_the_command_line_replace_those_of_the_file(run: Run, rules: str, words: str, *, prepares: bool) -> None:
    """``--rules`` has the names that files have."""
    text = "machine: {nodes: [1GiB], rules: 6.1}\ncallbacks: {a: {}}\nsteps:\n- add: {size: 128MiB}\n"
    ran = run(f"{text}- write: {{file: memory32/online, text: '1'}}\n", "--rules", rules)
    assert f"  (rules: {words})" in ran.lines
    assert ("MEM_PREPARE_ONLINE" in ran.out) is prepares


def test_unknown_rules_are_bad_input(run: Run) -> None:
    """The message says which there are."""
    assert run(SMALL, "--rules", "5.15") == (2, "", "memhp: --rules: '5.15' is not valid; expected documented, 6.1 or 6.12\n")


# -- bad input


def test_a_wrong_file_is_exit_code_2_with_one_line(run: Run) -> None:
    """File and line, the value, and what was expected; nothing on stdout."""
    ran = run("machine: {nodes: [1GiB]}\nsteps:\n  - onlin: 32\n")
    verbs = (
        "plug, unplug, add, add_driver_managed, group, ungroup, remove, offline_and_remove, online, offline, write, read, "
        "allocate, fill, free, pin, unpin, register, unregister, load, unload, signal, resize, plug_cpu, unplug_cpu, note, bind, "
        "unbind, hypervisor, hot_add, reserve_additional, memremap, memunmap, join, leave, tune, work, show"
    )
    assert ran == (
        2,
        "",
        (
            "memhp: s.yaml:3: steps[0]: 'onlin' is not valid; expected online (did you mean that?), or another of the keys "
            f"{verbs}, thread, expect, as\n"
        ),
    )


def test_a_step_that_cannot_be_played_is_exit_code_2(run: Run) -> None:
    """What only shows while playing is bad input of that line all the same."""
    ran = run("machine: {nodes: [1GiB]}\nsteps:\n- offline: new\n")
    assert ran.code == 2
    assert (
        ran.err
        == "memhp: s.yaml:3: offline: 'new' is not valid; expected a name given by an earlier step with `as`, or of a DIMM\n"
    )


def test_what_the_kernel_ignores_is_a_warning_of_the_run(run: Run) -> None:
    """Words of the command line about memory hotplug that mean nothing, and actions that the rules never send."""
    said = (
        "WARNING line 1: the kernel ignores a word of its command line: "
        "parameters: memhp_default_state: 'zz' is not valid; expected offline, online, online_kernel or online_movable\n"
    )
    ran = run('machine: {nodes: [1GiB], parameters: "quiet memhp_default_state=zz"}\nsteps: []\n')
    assert (ran.code, said in ran.out) == (0, True)
    ran = run("machine: {nodes: [1GiB]}\nsteps: []\ncallbacks:\n  a: {MEM_PREPARE_ONLINE: BAD}\n", "--rules", "6.1")
    assert "WARNING line 4: a never hears MEM_PREPARE_ONLINE, not sent under the rules 6.1\n" in ran.out
    ran = run("machine: {nodes: [1GiB]}\nsteps: []\ncallbacks:\n  a: {MEM_PREPARE_ONLINE: BAD}\n", "--rules", "6.12")
    assert "WARNING" not in ran.out


def test_control_sequences_of_a_file_do_not_reach_the_terminal(run: Run) -> None:
    """A title and a note are shown as text, like everything else that a file says."""
    ran = run('title: "a\\e[2Jb"\nmachine: {nodes: [1GiB]}\nsteps:\n- note: "c\\e[31md"\n')
    assert "\x1b" not in ran.out
    assert ran.out.startswith("a\\x1b[2Jb\n")
    assert "-- c\\x1b[31md\n" in ran.out


def test_a_module_that_ends_the_program_is_told_with_its_name(run: Run, tmp_path: Path) -> None:
    """Importing a callback's module can end the program; that is an error of the line that names it."""
    (tmp_path / "leaver.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    ran = run("machine: {nodes: [1GiB]}\ncallbacks: {c: {call: 'leaver:f'}}\nsteps: []\n")
    assert (ran.code, ran.err) == (
        2,
        "memhp: s.yaml:2: c: 'leaver:f' is not valid; expected a function that can be imported (SystemExit: 3)\n",
    )


def test_a_missing_tree_is_exit_code_2(run: Run) -> None:
    """The line is named, and the directory that is missing."""
    ran = run("machine: {from: nowhere}\nsteps: []\n")
    assert ran == (
        2,
        "",
        (
            "memhp: s.yaml:1: machine: from: 'nowhere' is not valid; expected host, or a directory with a copy of /sys; "
            "there is no nowhere/sys/devices/system/memory\n"
        ),
    )


def test_a_missing_scenario_is_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file that isn't there is named."""
    path = tmp_path / "none.yaml"
    assert main(["run", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"memhp: {path}:")
    assert "No such file or directory" in err


def test_ctrl_c_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted, it says so in one line."""

    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memhp.cli.run.load", interrupted)
    assert run(SMALL) == (130, "", "memhp: interrupted\n")


def test_the_log_of_a_program_stays_as_it_was(run: Run) -> None:
    """A run in-process silences memhp's log only while it lasts."""
    log = logging.getLogger("memhp")
    before = (log.propagate, list(log.handlers))
    run(SMALL)
    assert (log.propagate, list(log.handlers)) == before


# -- the command itself

USAGE = """\
usage: memhp run [-h] [--json] [--rules RULES] [--quiet] FILE

Play a scenario file on the modelled machine and show each call of a callback
as it happens. Nothing of the real machine is changed, also with `from: host`,
which only reads its /sys.

positional arguments:
  FILE           the scenario (docs/scenarios.md says how to write one)

options:
  -h, --help     show this help message and exit
  --json         print events as JSON lines (docs/run-json.md)
  --rules RULES  whose rules the machine follows: documented, 6.1 or 6.12;
                 default: the file's
  --quiet        print only what did not hold
"""


def test_help_says_what_each_option_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``memhp run --help`` is complete."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == USAGE


def test_no_command_is_exit_code_2_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever says nothing sees what could be said, on stderr."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: memhp [-h] [--version] COMMAND ...")
    assert "Exit codes: 0 everything held, 1 an expectation failed, 2 bad input." in err


def test_version_names_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """``memhp --version`` is the version of the package."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"memhp {memhp.__version__}\n"


@pytest.mark.parametrize("arguments", [["play"], ["run"], ["run", "--loud", "s.yaml"], ["run", "a.yaml", "b.yaml"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands, options and missing files are told with the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: memhp" in capsys.readouterr().err


# -- as a program


def memhp_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memhp.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_program_gives_its_exit_code_and_no_traceback(tmp_path: Path) -> None:
    """As a process of its own it does the same: 0, 1 and 2, also with a thread that waits for ever."""
    path = tmp_path / "s.yaml"
    stuck = """machine: {nodes: [1GiB]}
steps:
- add: {size: 128MiB}
- online: 32
- allocate: {name: x, pages: 1, blocks: 32, pinned: true}
- offline: 32
"""
    for text, code in ((SMALL, 0), (FAILING, 1), (stuck, 1), ("machine: 5\n", 2)):
        path.write_text(text, encoding="utf-8")
        ran = memhp_run("run", str(path))
        assert ran.returncode == code
        assert "Traceback" not in ran.stdout + ran.stderr
        assert bool(ran.stderr) is (code == 2)


def test_a_reader_who_has_seen_enough_ends_the_run_quietly(tmp_path: Path) -> None:
    """``memhp run FILE | head -1`` says nothing, and its exit code does not claim that everything held."""
    path = tmp_path / "s.yaml"
    path.write_text("machine: {nodes: [1GiB]}\nsteps:\n" + "- note: x\n" * 3000, encoding="utf-8")
    command = [sys.executable, "-m", "memhp.cli", "run", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "s\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


def test_a_callback_that_ends_the_program_is_no_success(run: Run, tmp_path: Path) -> None:
    """``sys.exit(0)`` in a callback can't make a run that is not complete look complete."""
    (tmp_path / "leaver.py").write_text("import sys\n\n\ndef leave(block, action, arg):\n    sys.exit(0)\n", encoding="utf-8")
    ran = run("machine: {nodes: [1GiB]}\ncallbacks: {x: {call: 'leaver:leave'}}\nsteps: [{offline: last}]\n")
    assert (ran.code, ran.err) == (2, "memhp: a callback ended the program; the run is not complete\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("machine: {nodes: [128GiB], physical_bits: 36}\nsteps: []\n", 1),
        ("machine:\n  nodes: [1GiB]\n  five_level_paging: maybe\nsteps: []\n", 2),
        ("machine: {nodes: [1GiB]}\nsteps:\n- remove: {node: 0, blocks: first 9}\n", 3),
        ("machine: {nodes: [1GiB, 0]}\nsteps:\n- remove: {node: 1}\n", 3),
        ("machine: {nodes: [1GiB]}\nsteps:\n- note: x\n- offline: last\n  thread: main\n", 5),
    ],
)
def test_what_a_machine_does_not_have_is_bad_input_with_its_line(run: Run, text: str, line: int) -> None:
    """One line on stderr, no traceback."""
    ran = run(text)
    assert ran.code == 2
    assert ran.err.startswith(f"memhp: s.yaml:{line}")
    assert ran.err.count("\n") == 1


def test_pages_under_one_name_are_freed_where_the_change_is(run: Run) -> None:
    """A callback that takes pages from each block that comes gives back those of the block that goes."""
    ran = run(
        """\
machine: {nodes: [1GiB]}
callbacks:
  db:
    MEM_ONLINE: {allocate: {name: buffers, size: 1MiB, pinned: true}}
    MEM_GOING_OFFLINE: {free: buffers}
steps:
  - add: {size: 256MiB}
    as: new
  - online: new
  - offline: new
"""
    )
    assert (ran.code, ran.err) == (0, "")
