"""Generated scenarios: the same for the same seed, playable, and with something happening in them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memhp.conform.generate import SHAPES, generate, write_scenario
from memhp.conform.generate_dax import DaxSteps
from memhp.conform.generate_steps import Ground
from memhp.conform.play import play_model
from memhp.kernel import Machine, Rules
from memhp.lab.plan import make_plan
from memhp.scenario import load

DAX = (
    "kmem/bind",
    "kmem/unbind",
    "device_dax/",
    "new_id",
    "remove_id",
    "/size",
    "/create",
    "/delete",
    "/mapping",
    "/align",
    "/memmap",
)


def test_a_seed_always_makes_the_same_scenario() -> None:
    """And another seed another one."""
    assert generate(7, 40).text() == generate(7, 40).text()
    assert generate(7, 40).steps != generate(12, 40).steps


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_every_scenario_can_be_played_on_both_kernels_rules(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Each step has a meaning on a real kernel, and names only what is there."""
    path = write_scenario(generate(seed, 25), tmp_path_factory.mktemp("generated"))
    scenario = load(path)
    make_plan(scenario)
    for rules in (Rules.LINUX_6_1, Rules.LINUX_6_12):
        assert len(play_model(scenario, rules)) == 26


@pytest.mark.parametrize("seed", [559, 1389])
def test_a_driver_that_never_goes_does_not_hold_up_the_steps_after_it(seed: int) -> None:
    """In these a device is bound for good when its memory is to be split."""
    assert len(generate(seed, 25).steps) == 25


def test_no_step_unbinds_a_device_at_which_a_kernel_would_crash() -> None:
    """kmem has passed over its second range, which leaked before: it may be unbound while that range's block is online only."""
    machine = Machine.boot(["4GiB"], rules="6.12", parameters="memhp_default_state=offline", soft_reserved=[("4GiB", "512MiB")])
    kmem, device, ranges = (
        "/sys/bus/dax/drivers/kmem",
        "/sys/bus/dax/devices/dax0.0",
        ("100000000-107ffffff", "110000000-117ffffff"),
    )
    machine.tree.write(f"{kmem}/unbind", "dax0.0")
    machine.tree.write(f"{device}/size", "0")
    for text in ranges:
        machine.tree.write(f"{device}/mapping", text)
    machine.tree.write(f"{kmem}/bind", "dax0.0")
    machine.device_online(34, "online_movable")
    machine.tree.write(f"{kmem}/unbind", "dax0.0")
    machine.tree.write(f"{kmem}/bind", "dax0.0")

    def unbinds() -> bool:
        written: list[tuple[str, str]] = []

        def write(file: str, text: str) -> dict[str, object]:
            written.append((file, text))
            return {}

        ground = Ground(random.Random(1), [machine], write, lambda: None, set())  # noqa: S311 - no secret
        steps = DaxSteps(ground, lambda makers: None)
        for _ in range(100):
            for _, make in steps.kinds:
                make()
        return (f"{kmem}/unbind", "dax0.0") in written

    assert unbinds()
    machine.device_offline(34)
    assert not unbinds()


def test_a_cpu_is_taken_out_in_the_last_step_only() -> None:
    """After it QEMU 7.2 does not survive much."""
    with_sockets = [number for number, shape in enumerate(SHAPES) if "possible_cpus" in str(shape)]
    made = [generate(seed, 60).steps for seed in range(10 * len(SHAPES)) if seed % len(SHAPES) in with_sockets]

    assert not [step for steps in made for step in steps[:-1] if "unplug_cpu" in step]
    assert sum("unplug_cpu" in steps[-1] for steps in made) >= 3


@pytest.mark.timeout(400)
def test_all_machines_and_all_kinds_of_steps_appear(tmp_path: Path) -> None:
    """Of 4,800 steps enough succeed and enough fail, with several errnos, and the chain is called often."""
    verbs: Counter[str] = Counter()
    results: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    files: list[str] = []
    for seed in range(120):
        made = generate(seed, 40)
        verbs.update(next(iter(step)) for step in made.steps)
        files += [step["write"]["file"] for step in made.steps if "write" in step]
        for step in play_model(load(write_scenario(made, tmp_path)), Rules.LINUX_6_12)[1:]:
            results[step.result] += 1
            calls.update(line.partition("(")[0] for line in step.heard if line.startswith("MEM_"))

    assert {len(generate(seed, 1).machine["nodes"]) for seed in range(len(SHAPES))} == {2, 3}
    assert min(verbs[verb] for verb in ("plug", "unplug", "write", "read", "load", "unload", "resize")) >= 20
    assert verbs["plug_cpu"] >= 3
    paths = Counter(
        path for file in files for path in ("/cpu/", "/eject", "hugepages", "hard_offline_page", *DAX) if path in file
    )
    assert min(paths.values()) >= 2
    assert len(paths) == 4 + len(DAX)
    assert results["ok"] >= 800
    assert {"EINVAL", "ENOENT", "EBUSY", "ENOMEM", "ENODEV", "EEXIST", "ERANGE"} <= set(results)
    assert min(calls[action] for action in ("MEM_ONLINE", "MEM_OFFLINE", "MEM_CANCEL_ONLINE", "MEM_CANCEL_OFFLINE")) >= 10
