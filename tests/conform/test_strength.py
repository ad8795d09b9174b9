"""How strong generated scenarios are: with a bug planted in the model, some of the first 52 tell
it from the model as it is, which does what the kernels do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from memhp.conform import Observed, differences
from memhp.conform.generate import SHAPES, generate, write_scenario
from memhp.conform.play import play_model
from memhp.errors import HotplugError
from memhp.events import MEM_OFFLINE, MEM_ONLINE, MemoryAction
from memhp.kernel import Machine, Rules, acpi_files, attributes, cpus
from memhp.kernel.cpus import Cpu
from memhp.kernel.dax import DaxRegion, DevDax
from memhp.kernel.daxbus import DaxBus, DaxDriver, DeviceDaxDriver, KmemDriver
from memhp.kernel.drivers import DaxKmem, VirtioMem, virtiomem_sbm
from memhp.kernel.drivers.virtiomem_bbm import BigBlocks
from memhp.kernel.drivers.virtiomem_sbm import BlockState, SubBlocks
from memhp.kernel.sockets import Sockets
from memhp.kernel.tiers import MemoryTiers
from memhp.kernel.zones import NodeState
from memhp.notifier import NotifyResult
from memhp.scenario import load
from memhp.scenario.model import Scenario

SEEDS = range(1, 53)
STEPS = 100
RULES = (Rules.LINUX_6_1, Rules.LINUX_6_12)

Plant = Callable[[pytest.MonkeyPatch], None]


class Runs:
    """The scenarios, and what the model as it is does in them; made when they are needed first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[int, tuple[Scenario, list[Sequence[Observed]]]] = {}

    def get(self, seed: int) -> tuple[Scenario, list[Sequence[Observed]]]:
        if seed not in self._made:
            scenario = load(write_scenario(generate(seed, STEPS), self._directory))
            self._made[seed] = scenario, [play_model(scenario, rules) for rules in RULES]
        return self._made[seed]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("generated"))


# -- bugs of virtio-mem


def works_when_something_goes_offline(patch: pytest.MonkeyPatch) -> None:
    end = VirtioMem._end

    def wrong(self: VirtioMem, action: MemoryAction, start: int, size: int) -> None:
        end(self, action, start, size)
        self.queued = self.queued or action is MEM_OFFLINE

    patch.setattr(VirtioMem, "_end", wrong)


def forgets_that_offline_memory_has_gone(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: VirtioMem, size: int) -> None:
        self.queued = True

    patch.setattr(VirtioMem, "_removed", wrong)


def counts_what_it_took(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(virtiomem_sbm, "adjust_managed_page_count", lambda machine, block, pages: None)


def takes_full_blocks_before_partial_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(virtiomem_sbm, "_TO_UNPLUG", tuple(sorted(virtiomem_sbm._TO_UNPLUG, key=lambda pair: pair[1])))


def takes_online_blocks_before_offline_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(virtiomem_sbm, "_TO_UNPLUG", virtiomem_sbm._TO_UNPLUG[2:] + virtiomem_sbm._TO_UNPLUG[:2])


def fills_new_blocks_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(virtiomem_sbm, "_TO_PLUG", ())


def takes_the_lowest_big_block(patch: pytest.MonkeyPatch) -> None:
    added = BigBlocks._added
    patch.setattr(BigBlocks, "_added", lambda self: added(self)[::-1])


def takes_every_block_for_a_kernel_block(patch: pytest.MonkeyPatch) -> None:
    notify = SubBlocks.notify

    def wrong(self: SubBlocks, action: MemoryAction, start: int, size: int) -> NotifyResult:
        answer = notify(self, action, start, size)
        if action is MEM_ONLINE:
            self._at(start).state = BlockState.KERNEL
        return answer

    patch.setattr(SubBlocks, "notify", wrong)


# -- bugs of CPUs


def keeps_its_node_among_those_with_cpus(patch: pytest.MonkeyPatch) -> None:
    set_state = Machine.set_node_state

    def wrong(self: Machine, state: NodeState, nid: int, *, member: bool) -> None:
        set_state(self, state, nid, member=member or state is NodeState.N_CPU)

    patch.setattr(Machine, "set_node_state", wrong)


def forgets_the_device_of_machine_checks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cpus, "_emit_machine_check", lambda machine, action, cpu: None)


def lists_cpus_that_are_offline(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: cpus.Cpus, nid: int) -> list[int]:
        return [cpu.number for cpu in self if cpu.nid == nid]

    patch.setattr(cpus.Cpus, "online_of", wrong)


def numbers_each_new_cpu_by_its_socket(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sockets, "_cpu_number", lambda self, socket: socket)


def checks_a_new_cpu_before_its_driver_starts(patch: pytest.MonkeyPatch) -> None:
    start, check = cpus._start, cpus._emit_machine_check

    def wrong(machine: Machine, cpu: Cpu) -> None:
        check(machine, "add", cpu)
        with pytest.MonkeyPatch.context() as once:
            once.setattr(cpus, "_emit_machine_check", lambda machine, action, cpu: None)
            start(machine, cpu)

    patch.setattr(cpus, "_start", wrong)


def takes_a_cpu_out_without_its_driver(patch: pytest.MonkeyPatch) -> None:
    emit = cpus._emit_cooling

    def wrong(machine: Machine, action: str, number: int) -> None:
        if action == "add":
            emit(machine, action, number)

    patch.setattr(cpus, "_emit_cooling", wrong)


# -- bugs of dax devices


def adds_to_the_nearest_node(patch: pytest.MonkeyPatch) -> None:
    probe = KmemDriver.probe

    def wrong(self: KmemDriver, device: DevDax) -> object:
        device.region.target_node = 0
        return probe(self, device)

    patch.setattr(KmemDriver, "probe", wrong)


def gives_the_highest_gap(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: DaxRegion) -> tuple[None, int, int]:
        taken = max((one.end + 1 for one in self._taken()), default=self.start)
        return None, taken, self.end + 1

    patch.setattr(DaxRegion, "first_gap", wrong)


def lets_a_driver_try_the_named_device_alone(patch: pytest.MonkeyPatch) -> None:
    new_id = DaxBus.new_id

    def wrong(self: DaxBus, driver: DaxDriver, name: str) -> None:
        with pytest.MonkeyPatch.context() as once:
            once.setattr(DaxBus, "_attach", lambda self, driver: None)
            new_id(self, driver, name)
        with contextlib.suppress(HotplugError):
            self.bind(driver, name)

    patch.setattr(DaxBus, "new_id", wrong)


def forgets_that_device_dax_failed(patch: pytest.MonkeyPatch) -> None:
    probe = DeviceDaxDriver.probe

    def wrong(self: DeviceDaxDriver, device: DevDax) -> object:
        device.stale = False
        return probe(self, device)

    patch.setattr(DeviceDaxDriver, "probe", wrong)


def takes_slow_memory_for_dram(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryTiers, "claim_slow", lambda self, nid: None)
    patch.setattr(MemoryTiers, "release_slow", lambda self, nid, failed=False: None)


def keeps_the_seed_of_a_region(patch: pytest.MonkeyPatch) -> None:
    probe = DaxBus._probe

    def wrong(self: DaxBus, driver: DaxDriver, device: DevDax) -> None:
        seed = device.region.seed
        probe(self, driver, device)
        device.region.seed = seed

    patch.setattr(DaxBus, "_probe", wrong)


def removes_what_is_online(patch: pytest.MonkeyPatch) -> None:
    unbind = DaxKmem.unbind

    def wrong(self: DaxKmem) -> None:
        for claim in self.claims:
            for block in self._machine.blocks_within(claim.start, claim.size):
                with contextlib.suppress(HotplugError):
                    self._machine.device_offline(block.id)
        unbind(self)

    patch.setattr(DaxKmem, "unbind", wrong)


# -- bugs of ejection


def ejects_whatever_is_written(patch: pytest.MonkeyPatch) -> None:
    store = acpi_files._store_eject
    attribute = acpi_files._DEVICE_FILES["eject"]
    wrong = attributes.Attribute(attribute.mode, None, lambda machine, device, text: store(machine, device, "1"))
    patch.setitem(acpi_files._DEVICE_FILES, "eject", wrong)


VIRTIO = {number for number, shape in enumerate(SHAPES) if "virtio_mem" in shape}
CPUS = {number for number, shape in enumerate(SHAPES) if "possible_cpus" in str(shape)}
DAX = {number for number, shape in enumerate(SHAPES) if "soft_reserved" in shape}
ANY = set(range(len(SHAPES)))
BUGS: dict[Plant, set[int]] = {
    works_when_something_goes_offline: VIRTIO,
    forgets_that_offline_memory_has_gone: VIRTIO,
    counts_what_it_took: VIRTIO,
    takes_full_blocks_before_partial_ones: VIRTIO,
    takes_online_blocks_before_offline_ones: VIRTIO,
    fills_new_blocks_only: VIRTIO,
    takes_the_lowest_big_block: VIRTIO,
    takes_every_block_for_a_kernel_block: VIRTIO,
    keeps_its_node_among_those_with_cpus: CPUS,
    forgets_the_device_of_machine_checks: CPUS,
    lists_cpus_that_are_offline: CPUS,
    numbers_each_new_cpu_by_its_socket: CPUS,
    checks_a_new_cpu_before_its_driver_starts: CPUS,
    takes_a_cpu_out_without_its_driver: CPUS,
    adds_to_the_nearest_node: DAX,
    gives_the_highest_gap: DAX,
    lets_a_driver_try_the_named_device_alone: DAX,
    forgets_that_device_dax_failed: DAX,
    takes_slow_memory_for_dram: DAX,
    keeps_the_seed_of_a_region: DAX,
    removes_what_is_online: DAX,
    ejects_whatever_is_written: ANY,
}
"""Each with the machines on which it can show."""


@pytest.mark.parametrize(("plant", "machines"), BUGS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found(plant: Plant, machines: set[int], runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one of them at least, in the length of the long run (make conform)."""
    for seed in (seed for seed in SEEDS if seed % len(SHAPES) in machines):
        scenario, expected = runs.get(seed)
        with monkeypatch.context() as patch:
            plant(patch)
            found = [differences(play_model(scenario, rules), real) for rules, real in zip(RULES, expected, strict=True)]
        if any(found):
            return
    pytest.fail(f"none of {len(SEEDS)} scenarios of {STEPS} steps shows that the model {plant.__name__}")
