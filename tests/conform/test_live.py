"""A short run beside real kernels: shared guests, generated scenarios, and a kernel that does otherwise than recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memhp.cli import main
from memhp.cli.conform import LIBRARY
from memhp.conform import Recording
from memhp.conform.play import RealKernel
from memhp.lab import kernels
from memhp.scenario import load

pytestmark = [pytest.mark.qemu, pytest.mark.parametrize("series", ["6.1", "6.12"])]


def test_a_kernel_does_again_what_was_recorded(series: str) -> None:
    """Scenarios of one machine share a guest, and what one leaves behind is gone for the next one: the recordings say so."""
    names = ["stale-type", "refused-offline", "stale-type", "replug"]
    with RealKernel(kernels.kernel_of(series)) as real:
        for name in names:
            before = Recording.load(LIBRARY / "recorded" / series / f"{name}.json")
            now = real.record(load(LIBRARY / f"{name}.yaml"))
            assert (now.scenario, [step.heard for step in now.steps]) == (before.scenario, [step.heard for step in before.steps])
            assert [(step.result, step.text) for step in now.steps] == [(step.result, step.text) for step in before.steps]
        assert real.boots == 1


def test_generated_scenarios_agree(series: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Other seeds than those of the long run (make conform)."""
    code = main(["conform", "--generate", "2", "--steps", "20", "--seed", "9000", "--kernel", series, "--keep", str(tmp_path)])
    assert code == 0, capsys.readouterr().out


def test_a_kernel_that_does_otherwise_has_drifted(series: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The recording is kept as it was, until the new one is accepted."""
    shutil.copy(LIBRARY / "boot-blocks.yaml", tmp_path)
    path = tmp_path / "recorded" / series / "boot-blocks.json"
    path.parent.mkdir(parents=True)
    original = (LIBRARY / "recorded" / series / "boot-blocks.json").read_text()
    tampered = original.replace('"result": "EINVAL"', '"result": "EBUSY"', 1)
    path.write_text(tampered)

    command = ["conform", str(tmp_path / "boot-blocks.yaml"), "--live", "--kernel", series]
    assert main(command) == 1
    assert "DRIFTED" in capsys.readouterr().out
    assert path.read_text() == tampered
    assert main([*command, "--accept"]) == 1
    assert '"EBUSY"' not in path.read_text()
