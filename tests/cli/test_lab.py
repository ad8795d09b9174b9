"""``memhp lab``: exit codes and what is said where there is no lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memhp.cli import main

SCENARIO = "machine: {nodes: [1GiB]}\nsteps: [{offline: 1}]\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory; it is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memhp"


def test_without_kernels_the_listing_says_how_to_get_some(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    """As text; as JSON it is an empty list."""
    assert main(["lab", "kernels"]) == 0
    assert main(["lab", "kernels", "--json"]) == 0
    assert capsys.readouterr().out == f"no kernel in {cache}; get them with: memhp lab fetch\n[]\n"


def test_the_listing_has_exact_versions(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    """One line a kernel."""
    (cache / "kernels/6.1").mkdir(parents=True)
    (cache / "kernels/6.1/about.json").write_text('{"release": "6.1.0-56-cloud-amd64", "version": "6.1.192-2"}')
    assert main(["lab", "kernels"]) == 0
    assert main(["lab", "kernels", "--json"]) == 0
    text, listed = capsys.readouterr().out.splitlines()
    assert text == f"6.1    6.1.0-56-cloud-amd64 (6.1.192-2) in {cache / 'kernels/6.1'}"
    assert json.loads(listed) == [{"series": "6.1", "release": "6.1.0-56-cloud-amd64", "version": "6.1.192-2"}]


def test_a_kernel_that_is_not_there_is_exit_code_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The message has the command that gets it."""
    (tmp_path / "demo.yaml").write_text(SCENARIO)
    assert main(["lab", "run", str(tmp_path / "demo.yaml"), "--kernel", "6.1"]) == 3
    assert capsys.readouterr().err == "memhp: missing: Linux 6.1; get it with: memhp lab fetch --kernel 6.1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["demo.yaml", "--kernel", "5.10"],
            "memhp: --kernel: '5.10' is not valid; expected 6.1 or 6.12, or VMLINUZ[:MODULES_DIR]",
        ),
        (["demo.yaml", "--kernel", "6.1", "--patience", "0"], "memhp: --patience: 0.0 is not valid"),
        (["nosuch.yaml", "--kernel", "6.1"], "memhp: nosuch.yaml: expected a file that can be read"),
    ],
)
def test_bad_input_is_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything boots."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text(SCENARIO)
    assert main(["lab", "run", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_what_has_no_meaning_is_refused_even_without_a_kernel(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """File and line are those of the scenario."""
    file = tmp_path / "demo.yaml"
    file.write_text("machine: {nodes: [1GiB]}\nsteps:\n  - offline: 1\n    thread: me\n")
    (tmp_path / "memhp/kernels/6.1").mkdir(parents=True)
    (tmp_path / "memhp/kernels/6.1/about.json").write_text('{"release": "r", "version": "v"}')
    assert main(["lab", "run", str(file), "--kernel", "6.1"]) == 2
    assert capsys.readouterr().err.startswith(f"memhp: {file}:3: steps: offline 1: 'me' is not valid; expected no thread")


def test_a_kernel_whose_chain_can_not_be_heard_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A scenario needs to know where to listen; a shell doesn't."""
    (tmp_path / "demo.yaml").write_text(SCENARIO)
    data = bytearray(0x400)
    data[0x202:0x206], data[0x20E:0x210], data[0x300:0x307] = b"HdrS", b"\0\1", b"5.10.9 "
    (tmp_path / "vmlinuz").write_bytes(data)
    assert main(["lab", "run", str(tmp_path / "demo.yaml"), "--kernel", str(tmp_path / "vmlinuz")]) == 2
    said = capsys.readouterr().err
    assert "is Linux 5.10.9, and where its notifier chain can be heard is known only of 6.1 and 6.12" in said
    assert said.endswith("memhp lab boot boots any\n")
