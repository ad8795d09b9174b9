"""Which guests run: names, and what dead owners leave."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from memhp.errors import InvalidInput, LabError
from memhp.lab import running


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the guests' directories; there is none yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "memhp"


def claimed(name: str = "", series: str = "6.1") -> running.Place:
    """A guest whose QEMU is this process."""
    place = running.claim(name, series)
    place.note(release="6.1.0-1", shape="1 GiB", qemu=os.getpid())
    return place


def test_a_guest_is_found_while_its_owner_has_it(root: Path) -> None:
    """By name, or as the only one; its directory is private, and goes with it."""
    place = claimed("mine")
    found = running.find("mine")
    assert (found.name, found.release, found.shape, found.owner) == ("mine", "6.1.0-1", "1 GiB", os.getpid())
    assert running.find() == found
    assert (root.stat().st_mode & 0o777, place.directory.stat().st_mode & 0o777) == (0o700, 0o700)

    place.release()
    assert running.guests() == []
    with pytest.raises(InvalidInput, match="--guest: expected a guest that runs"):
        running.find()
    with pytest.raises(InvalidInput, match="'mine' is not valid; expected a guest that runs: there is none"):
        running.find("mine")


def test_names_are_made_and_kept_apart() -> None:
    """A name that is taken is refused; without one, a number is added; several guests need one."""
    places = [claimed(), claimed(), claimed("other")]
    assert [place.name for place in places] == ["linux-6.1", "linux-6.1-2", "other"]
    with pytest.raises(InvalidInput, match="expected a name that no running guest has"):
        running.claim("other")
    with pytest.raises(InvalidInput, match=r"several guests run: linux-6\.1, linux-6\.1-2, other"):
        running.find()
    for place in places:
        place.release()


@pytest.mark.parametrize("name", ["../up", "", "a b", "-x", "x" * 33])
def test_a_name_is_a_plain_word(name: str) -> None:
    """Nothing that leads elsewhere."""
    if name:
        with pytest.raises(InvalidInput, match="--name"):
            running.claim(name)
    else:
        running.claim("", "6.12").release()


def test_what_a_dead_owner_leaves_is_removed(root: Path) -> None:
    """A process that was killed leaves its directory; the next look removes it, and ends QEMU if it still runs."""
    program = (
        "import os, signal, subprocess, sys\n"
        "from memhp.lab import running\n"
        "qemu = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "running.claim('dead').note(release='r', shape='s', qemu=qemu.pid)\n"
        "print(qemu.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    orphan = os.pidfd_open(int(ran.stdout))
    assert (root / "dead").is_dir()

    assert running.guests() == []
    assert not (root / "dead").exists()
    assert select.select([orphan], [], [], 30)[0]
    os.close(orphan)


def test_a_number_that_is_another_process_now_is_left_alone(root: Path) -> None:
    """The process that has the number of a dead guest's QEMU lives on, if it was started at another time."""
    place = claimed("old")
    about = json.loads((place.directory / "about.json").read_text())
    other = root / "older"
    other.mkdir()
    (other / "about.json").write_text(json.dumps({**about, "qemu_started": about["qemu_started"] - 1}))

    assert [guest.name for guest in running.guests()] == ["old"]
    assert not other.exists()
    place.release()


def test_a_directory_that_others_can_enter_is_refused(root: Path) -> None:
    """Who can connect to QEMU can change the guest."""
    root.mkdir(mode=0o755)
    with pytest.raises(LabError, match=r"is not private: owner \d+, mode 755; chmod 700"):
        running.guests()


def test_a_path_that_no_socket_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused before QEMU starts."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(LabError, match="too long for the path of a socket; set XDG_RUNTIME_DIR"):
        running.claim("a")
