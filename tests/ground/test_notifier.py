"""The notifier chain: the kernel's algebra of answers, its order and its waits, and what Python adds."""

from __future__ import annotations

import ctypes
import errno
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memhp import (
    MEM_CANCEL_OFFLINE,
    MEM_CANCEL_ONLINE,
    MEM_FINISH_OFFLINE,
    MEM_GOING_OFFLINE,
    MEM_GOING_ONLINE,
    MEM_OFFLINE,
    MEM_ONLINE,
    MEM_PREPARE_ONLINE,
    NOTIFY_BAD,
    NOTIFY_DONE,
    NOTIFY_OK,
    NOTIFY_STOP,
    NOTIFY_STOP_MASK,
    AlreadyRegistered,
    DeadlockError,
    InvalidInput,
    Machine,
    MemoryAction,
    MemoryNotify,
    NotifierBlock,
    NotifierChain,
    NotifyResult,
    NotRegistered,
    PriorityTaken,
    WrongAnswer,
    notifier_from_errno,
    notifier_to_errno,
)
from memhp.notifier import Call
from memhp.units import Pfn
from support import in_thread, until_parked

ARG = MemoryNotify(Pfn(0x100000), 0x8000)
ASKING = [MEM_PREPARE_ONLINE, MEM_GOING_ONLINE, MEM_GOING_OFFLINE]
TELLING = [MEM_ONLINE, MEM_OFFLINE, MEM_CANCEL_ONLINE, MEM_CANCEL_OFFLINE, MEM_FINISH_OFFLINE]


class Heard(list[str]):
    """Makes blocks that write down that they were called."""

    def block(self, name: str, answer: Any = NOTIFY_OK, priority: int = 0) -> NotifierBlock:
        def callback(block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
            self.append(f"{name} {action.name.removeprefix('MEM_') if isinstance(action, MemoryAction) else action}")
            if isinstance(answer, BaseException):
                raise answer
            result: NotifyResult = answer
            return result

        return NotifierBlock(callback, priority, name)

    def chain(self, *answers: Any) -> NotifierChain:
        """Make a chain of callbacks a, b, c, ... that give these answers."""
        chain = NotifierChain()
        for name, answer in zip("abcdefgh", answers, strict=False):
            chain.register(self.block(name, answer))
        return chain


@pytest.fixture
def heard() -> Heard:
    return Heard()


def names(chain: NotifierChain) -> list[str]:
    return [block.name for block in chain.blocks]


@pytest.mark.fact("1.1")
def test_callbacks_run_by_descending_signed_priority_and_equals_in_order_of_registration(heard: Heard) -> None:
    """Higher priorities are called first, negatives last, and equals in the order in which they registered."""
    chain = NotifierChain()
    for name, priority in [("zero", 0), ("minus", -5), ("ten", 10), ("zero too", 0), ("ten too", 10), ("least", -(2**31))]:
        chain.register(heard.block(name, priority=priority))
    chain.register(heard.block("most", priority=2**31 - 1))
    chain.call(MEM_ONLINE, ARG)
    assert heard == [
        "most ONLINE",
        "ten ONLINE",
        "ten too ONLINE",
        "zero ONLINE",
        "zero too ONLINE",
        "minus ONLINE",
        "least ONLINE",
    ]


@pytest.mark.fact("1.2")
def test_the_same_block_twice_is_refused_and_changes_nothing(heard: Heard) -> None:
    """Registering a block that is on the chain is EEXIST, and the chain stays as it is."""
    chain = heard.chain(NOTIFY_OK, NOTIFY_OK)
    first = chain.blocks[0]
    with pytest.raises(AlreadyRegistered) as caught:
        chain.register(first)
    assert (caught.value.errno, caught.value.block, names(chain)) == (errno.EEXIST, first, ["a", "b"])


@pytest.mark.fact("1.2")
def test_a_priority_can_not_be_raised_after_registration(heard: Heard) -> None:
    """The kernel then misses a duplicate and corrupts its list; here the priority is fixed."""
    chain = heard.chain(NOTIFY_OK, NOTIFY_OK)
    last = chain.blocks[1]
    with pytest.raises(AttributeError, match="priority"):
        last.priority = 10  # type: ignore[misc]
    with pytest.raises(AlreadyRegistered):
        chain.register(last)
    assert names(chain) == ["a", "b"]


def test_a_block_can_be_on_one_chain_only(heard: Heard) -> None:
    """A block has one link, so a second chain refuses it by the name of the first."""
    block = heard.block("a")
    NotifierChain("first_chain").register(block)
    with pytest.raises(AlreadyRegistered, match="already on first_chain"):
        NotifierChain("second_chain").register(block)


@pytest.mark.fact("1.3")
def test_a_unique_priority_that_is_taken_is_busy(heard: Heard) -> None:
    """Asking for a unique priority that another block has is EBUSY; a free one is given."""
    chain = NotifierChain()
    chain.register(heard.block("a", priority=7))
    with pytest.raises(PriorityTaken) as caught:
        chain.register(heard.block("b", priority=7), unique_priority=True)
    chain.register(heard.block("c", priority=8), unique_priority=True)
    assert caught.value.errno == errno.EBUSY
    assert "b (priority 7) is taken by a (priority 7)" in str(caught.value)
    assert names(chain) == ["c", "a"]


@pytest.mark.fact("1.3")
def test_unregistering_an_absent_block_is_an_error(heard: Heard) -> None:
    """Taking off a block that is not on the chain is ENOENT, by either way of asking."""
    chain = heard.chain(NOTIFY_OK)
    stranger = heard.block("stranger")
    with pytest.raises(NotRegistered) as caught:
        chain.unregister(stranger)
    with pytest.raises(NotRegistered):
        stranger.unregister()
    assert (caught.value.errno, caught.value.block, names(chain)) == (errno.ENOENT, stranger, ["a"])


def test_a_block_of_another_chain_is_absent(heard: Heard) -> None:
    """A chain does not take a block off another chain."""
    here, there = heard.chain(NOTIFY_OK), NotifierChain("there")
    block = there.register(heard.block("x"))
    with pytest.raises(NotRegistered):
        here.unregister(block)
    assert (names(here), names(there)) == (["a"], ["x"])


@pytest.mark.fact("1.3")
def test_registering_anew_moves_a_block_behind_its_equals(heard: Heard) -> None:
    """Unregister and register again puts the block behind all of its priority."""
    chain = heard.chain(NOTIFY_OK, NOTIFY_OK, NOTIFY_OK)
    block = chain.blocks[0]
    block.unregister()
    assert (names(chain), block.registered) == (["b", "c"], False)
    chain.register(block)
    assert (names(chain), block.registered) == (["b", "c", "a"], True)


@pytest.mark.fact("1.4")
def test_the_constants_have_the_kernels_values() -> None:
    """DONE, OK, STOP_MASK, BAD and STOP are the numbers of include/linux/notifier.h."""
    constants = [int(value) for value in (NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP_MASK, NOTIFY_BAD, NOTIFY_STOP)]
    assert constants == [0x0000, 0x0001, 0x8000, 0x8002, 0x8001]


@pytest.mark.fact("1.5")
@pytest.mark.parametrize(
    ("answers", "value", "calls"),
    [
        ([], 0x0000, ""),
        ([NOTIFY_OK, NOTIFY_DONE], 0x0000, "ab"),
        ([NOTIFY_DONE, NOTIFY_OK], 0x0001, "ab"),
        ([NOTIFY_OK, NOTIFY_STOP, NOTIFY_BAD], 0x8001, "ab"),
        ([NOTIFY_OK, NOTIFY_BAD, NOTIFY_OK], 0x8002, "ab"),
        ([NOTIFY_OK, NotifyResult(0x8000), NOTIFY_OK], 0x8000, "ab"),
        ([NotifyResult(0x7FFF), NotifyResult(0x10000), NOTIFY_OK], 0x0001, "abc"),
    ],
)
def test_bit_15_stops_the_chain_and_the_last_called_answer_is_the_value(
    heard: Heard, answers: list[NotifyResult], value: int, calls: str
) -> None:
    """Only bit 15 ends the chain; its value is that of the last callback called, and an empty chain is DONE."""
    assert int(heard.chain(*answers).call(MEM_GOING_ONLINE, ARG)) == value
    assert heard == [f"{name} GOING_ONLINE" for name in calls]


@pytest.mark.fact("1.6")
@pytest.mark.parametrize(("number", "encoded"), [(0, 0x0001), (-1, 0x8002), (-12, 0x800D), (-16, 0x8011), (-4095, 0x9000)])
def test_an_errno_is_encoded_with_the_stop_bit(number: int, encoded: int) -> None:
    """0 is OK, and any other errno is the stop bit or'ed with one minus it; -EPERM is BAD."""
    assert int(notifier_from_errno(number)) == encoded


@pytest.mark.fact("1.7")
@pytest.mark.parametrize(
    ("answer", "decoded"),
    [(0x0000, 0), (0x0001, 0), (0x8001, 0), (0x8000, 0), (0x8002, -1), (0x800D, -12), (0x9000, -4095), (2, -1), (5, -4)],
)
def test_an_answer_is_decoded_without_its_stop_bit(answer: int, decoded: int) -> None:
    """Without bit 15, more than one is an errno, and anything else is none."""
    assert notifier_to_errno(answer) == decoded


@pytest.mark.fact("1.6", "1.7")
@given(st.integers(-4095, 0))
def test_every_errno_survives_encoding(number: int) -> None:
    """Decoding gives back what was encoded, for each errno that a kernel has."""
    assert notifier_to_errno(notifier_from_errno(number)) == number


@pytest.mark.fact("1.10")
@pytest.mark.parametrize(
    ("number", "encoded", "decoded"),
    [(5, 0xFFFFFFFC, 0), (1, 0x8000, 0), (-32767, 0x8000, 0), (-40000, 0x9C41, -7232)],
)
def test_an_errno_out_of_range_is_encoded_as_c_would(number: int, encoded: int, decoded: int) -> None:
    """Outside of -4095..0 the encoding stops the chain and then does not mean what it says."""
    answer = notifier_from_errno(number)
    assert (int(answer) & 0xFFFFFFFF, answer.stops, notifier_to_errno(answer)) == (encoded, True, decoded)


@pytest.mark.fact("1.8")
@pytest.mark.parametrize("raw", [-1, -12, -16])
def test_a_raw_negative_return_stops_but_refuses_nothing(heard: Heard, raw: int) -> None:
    """A callback that returns a plain -ENOMEM has bit 15 set and decodes to 0: nobody after it hears, and all goes on."""
    answer = heard.chain(NotifyResult(raw), NOTIFY_OK).call(MEM_GOING_ONLINE, ARG)
    assert (int(answer), answer.stops, answer.errno, heard) == (raw, True, 0, ["a GOING_ONLINE"])


@pytest.mark.fact("1.8")
def test_a_raw_negative_without_bit_15_does_not_even_stop(heard: Heard) -> None:
    """-40000 happens to have bit 15 clear, so the chain goes on."""
    answer = heard.chain(NotifyResult(-40000), NOTIFY_OK).call(MEM_GOING_ONLINE, ARG)
    assert (answer, heard) == (NOTIFY_OK, ["a GOING_ONLINE", "b GOING_ONLINE"])
    assert (NotifyResult(-40000).stops, NotifyResult(-40000).errno) == (False, 0)


@pytest.mark.fact("1.9")
@pytest.mark.parametrize(("value", "number"), [(2, 1), (5, 4), (0x7FFF, 0x7FFE)])
def test_a_non_stop_value_of_two_or_more_refuses_only_from_the_last_position(heard: Heard, value: int, number: int) -> None:
    """2 from the last callback is EPERM and 5 is errno 4; from any other position the value is lost."""
    last = heard.chain(NOTIFY_OK, NotifyResult(value)).call(MEM_GOING_ONLINE, ARG)
    middle = heard.chain(NotifyResult(value), NOTIFY_OK).call(MEM_GOING_ONLINE, ARG)
    assert (last.errno, middle.errno) == (number, 0)


@pytest.mark.fact("1.1")
@given(st.lists(st.integers(-3, 3)))
def test_any_registrations_are_called_in_the_order_of_a_stable_sort(priorities: list[int]) -> None:
    """The chain's order is that of a stable sort by descending priority."""
    chain = NotifierChain()
    blocks = [chain.register(NotifierBlock(lambda *_: NOTIFY_OK, priority)) for priority in priorities]
    assert list(chain.blocks) == sorted(blocks, key=lambda block: -block.priority)


@pytest.mark.fact("1.1", "1.3")
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-2, 2)), max_size=40))
def test_any_comings_and_goings_keep_the_order_of_a_stable_sort(steps: list[tuple[int, int]]) -> None:
    """However blocks come and go, the chain is the stable sort by descending priority of those that came last."""
    chain = NotifierChain()
    present: list[NotifierBlock] = []
    slots: dict[int, NotifierBlock] = {}
    for slot, priority in steps:
        if slot in slots:
            block = slots.pop(slot)
            chain.unregister(block)
            present.remove(block)
        else:
            slots[slot] = NotifierBlock(lambda *_: NOTIFY_OK, priority)
            present.append(chain.register(slots[slot]))
        assert list(chain.blocks) == sorted(present, key=lambda block: -block.priority)


def c_notifier_call_chain(values: list[int]) -> tuple[int, int]:
    """``kernel/notifier.c`` over callbacks that return these values: the return value, and how many were called."""
    ret = called = 0
    for value in values:
        ret = value
        called += 1
        if ctypes.c_uint32(ret).value & 0x8000:
            break
    return ret, called


def c_notifier_to_errno(ret: int) -> int:
    """``include/linux/notifier.h``, in 32-bit arithmetic."""
    ret = ctypes.c_int32(ctypes.c_uint32(ret).value & ~0x8000).value
    return 1 - ret if ret > 1 else 0


C_INTS = st.one_of(
    st.sampled_from([0, 1, 2, 5, 0x7FFF, 0x8000, 0x8001, 0x8002, 0x800D, 0x9000, -1, -12, -40000]),
    st.integers(-(2**31), 2**31 - 1),
)


@pytest.mark.fact("1.5", "1.7", "1.8", "1.9")
@given(st.lists(C_INTS, max_size=8), st.sampled_from(list(MemoryAction)))
def test_any_answers_give_what_the_c_code_gives(values: list[int], action: MemoryAction) -> None:
    """The chain calls as many, and gives back the same value and errno, as the kernel's loop in plain C arithmetic."""
    heard = Heard()
    answer = heard.chain(*map(NotifyResult, values)).call(action, ARG)
    ret, called = c_notifier_call_chain(values)
    assert (int(answer), len(heard), notifier_to_errno(answer)) == (ret, called, c_notifier_to_errno(ret))


def test_an_answer_says_whose_it_is(heard: Heard) -> None:
    """Other than DONE and OK, the value of a call names the block that gave it, and leaves the constants alone."""
    chain = heard.chain(NOTIFY_OK, NOTIFY_BAD, NOTIFY_OK)
    answer = chain.call(MEM_GOING_OFFLINE, ARG)
    assert (answer, answer.callback, answer.cause) == (NOTIFY_BAD, chain.blocks[1], None)
    assert (NOTIFY_BAD.callback, NOTIFY_BAD.cause) == (None, None)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (NOTIFY_DONE, "NOTIFY_DONE"),
        (NotifyResult(1), "NOTIFY_OK"),
        (NOTIFY_STOP, "NOTIFY_STOP"),
        (NotifyResult(0x8002), "NOTIFY_BAD"),
        (NotifyResult(0x800D), "ENOMEM"),
        (NotifyResult(2), "0x2"),
        (NotifyResult(-12), "0xfffffff4"),
    ],
)
def test_an_answer_prints_as_what_it_means(answer: NotifyResult, text: str) -> None:
    """A constant prints its name, an encoded errno the errno's, and anything else the number that it is."""
    assert (str(answer), repr(answer)) == (text, f"<NotifyResult {text}>")


# -- the robust call


@pytest.mark.fact("1.11")
@pytest.mark.parametrize(
    ("answers", "value", "trace"),
    [
        ([NOTIFY_OK, NOTIFY_OK, NOTIFY_BAD, NOTIFY_OK], 0x8002, ["a up", "b up", "c up", "a down", "b down"]),
        ([NOTIFY_OK, NOTIFY_STOP, NOTIFY_OK], 0x8001, ["a up", "b up", "a down"]),
        ([NOTIFY_BAD, NOTIFY_OK], 0x8002, ["a up"]),
        ([NOTIFY_OK, NOTIFY_DONE], 0x0000, ["a up", "b up"]),
        ([NotifyResult(2), NOTIFY_OK], 0x0001, ["a up", "b up"]),
        ([], 0x0000, []),
    ],
)
def test_a_robust_call_takes_back_what_those_before_the_stop_heard(
    heard: Heard, answers: list[NotifyResult], value: int, trace: list[str]
) -> None:
    """If the up pass stops, by BAD or by STOP, the n-1 callbacks before it hear the down, in the same order."""
    answer = heard.chain(*answers).call_robust("up", "down", ARG)
    assert (int(answer), heard) == (value, trace)


@pytest.mark.fact("1.11")
def test_the_down_pass_is_a_chain_call_too(heard: Heard) -> None:
    """A callback that stops the down pass keeps it from those after it; the value stays that of the up pass."""

    def stops_down(block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        heard.append(f"s {action}")
        return NOTIFY_STOP if action == "down" else NOTIFY_OK

    chain = NotifierChain()
    chain.register(NotifierBlock(stops_down))
    chain.register(heard.block("b"))
    chain.register(heard.block("c", NOTIFY_BAD))
    assert int(chain.call_robust("up", "down", ARG)) == 0x8002
    assert heard == ["s up", "b up", "c up", "s down"]


@pytest.mark.parametrize("wrong", [RuntimeError("boom"), None])
def test_a_robust_call_takes_back_also_after_an_exception(heard: Heard, wrong: object) -> None:
    """A callback that raises, or answers nonsense, in the up pass may not leave those before it without their down."""
    chain = heard.chain(NOTIFY_OK, wrong, NOTIFY_OK)
    try:
        chain.call_robust(MEM_GOING_ONLINE, MEM_CANCEL_ONLINE, ARG)
    except (RuntimeError, WrongAnswer):
        heard.append("raised")
    assert heard[:3] == ["a GOING_ONLINE", "b GOING_ONLINE", "a CANCEL_ONLINE"]


def test_an_observer_sees_a_robust_call_too(heard: Heard) -> None:
    """Whoever observes a chain sees each callback, whichever way the chain is called."""
    chain = heard.chain(NOTIFY_OK, NOTIFY_BAD)
    seen: list[tuple[str, str]] = []
    chain.observe(lambda call: seen.append((call.block.name, call.action)))
    chain.call_robust("up", "down", ARG)
    assert seen == [("a", "up"), ("b", "up"), ("a", "down")]


# -- who waits for whom


class Slow:
    """A callback that stays inside until told to go."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.inside = threading.Event()
        self.go = threading.Event()

    def __call__(self, block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        self.inside.set()
        assert self.go.wait(30)
        self.log.append("the callback ends")
        return NOTIFY_OK


@pytest.fixture
def slow() -> Slow:
    return Slow([])


@pytest.mark.fact("1.13")
def test_unregister_waits_for_a_running_callback(slow: Slow) -> None:
    """When unregister returns, the callback that ran has ended."""
    chain = NotifierChain()
    block = chain.register(NotifierBlock(slow))
    caller = in_thread(lambda: chain.call(MEM_ONLINE, ARG), "caller")
    assert slow.inside.wait(30)

    def remove() -> None:
        block.unregister()
        slow.log.append("unregister returns")

    remover = in_thread(remove, "remover")
    until_parked(remover)
    assert (slow.log, block.registered) == ([], True)
    slow.go.set()
    caller.result()
    remover.result()
    assert (slow.log, names(chain)) == (["the callback ends", "unregister returns"], [])


@pytest.mark.fact("1.13")
def test_register_waits_for_a_running_callback(slow: Slow, heard: Heard) -> None:
    """Registering waits for every callback now running, as unregistering does."""
    chain = NotifierChain()
    chain.register(NotifierBlock(slow, name="slow"))
    caller = in_thread(lambda: chain.call(MEM_ONLINE, ARG), "caller")
    assert slow.inside.wait(30)

    def add() -> None:
        chain.register(heard.block("new"))
        slow.log.append("register returns")

    adder = in_thread(add, "adder")
    until_parked(adder)
    assert (slow.log, names(chain)) == ([], ["slow"])
    slow.go.set()
    caller.result()
    adder.result()
    assert (slow.log, names(chain), heard) == (["the callback ends", "register returns"], ["slow", "new"], [])


@pytest.mark.fact("1.13")
def test_waits_are_per_call_and_not_per_change(heard: Heard) -> None:
    """Between GOING_ONLINE and ONLINE a block that goes never hears ONLINE, and one that comes hears only ONLINE."""
    chain = NotifierChain()
    goes = chain.register(heard.block("goes"))
    chain.call(MEM_GOING_ONLINE, ARG)
    goes.unregister()
    chain.register(heard.block("comes"))
    chain.call(MEM_ONLINE, ARG)
    assert heard == ["goes GOING_ONLINE", "comes ONLINE"]


@pytest.mark.fact("1.14")
def test_a_pending_writer_blocks_new_calls(slow: Slow, heard: Heard) -> None:
    """A call that comes while somebody waits to unregister waits behind it, and no longer sees the block."""
    chain = NotifierChain()
    block = chain.register(NotifierBlock(slow))
    chain.register(heard.block("b"))
    caller = in_thread(lambda: chain.call(MEM_ONLINE, ARG), "caller")
    assert slow.inside.wait(30)
    remover = in_thread(block.unregister, "remover")
    until_parked(remover)
    late = in_thread(lambda: chain.call(MEM_OFFLINE, ARG), "late")
    until_parked(late)
    assert heard == []
    slow.go.set()
    for thread in (caller, remover, late):
        thread.result()
    assert (slow.log, heard) == (["the callback ends"], ["b ONLINE", "b OFFLINE"])


@pytest.mark.fact("1.12")
def test_calls_run_at_the_same_time() -> None:
    """Calls take the chain's lock for reading, so two threads can be in the same callback at once."""
    both = threading.Barrier(2)

    def meet(block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        both.wait(30)
        return NOTIFY_OK

    chain = NotifierChain()
    chain.register(NotifierBlock(meet))
    calls = [in_thread(lambda: chain.call(MEM_ONLINE, ARG), f"caller{n}") for n in range(2)]
    assert [call.result() for call in calls] == [NOTIFY_OK, NOTIFY_OK]


@pytest.mark.fact("1.12")
def test_an_empty_chain_takes_no_lock() -> None:
    """The kernel looks for an empty head before it takes the lock; so a call of an empty chain never waits."""
    chain = NotifierChain()
    with chain.rwsem.write:
        assert chain.call(MEM_ONLINE, ARG) is NOTIFY_DONE


Change = Callable[[NotifierChain, NotifierBlock], object]
CHANGES: dict[str, Change] = {
    "unregister itself": lambda chain, block: block.unregister(),
    "unregister another": lambda chain, block: chain.unregister(chain.blocks[-1]),
    "register": lambda chain, block: chain.register(NotifierBlock(lambda *_: NOTIFY_OK)),
    "observe": lambda chain, block: chain.observe(lambda call: None),
}


@pytest.mark.fact("1.14")
@pytest.mark.parametrize("what", CHANGES)
def test_changing_a_chain_from_inside_its_callback_is_a_deadlock_error_at_once(heard: Heard, what: str) -> None:
    """What hangs in the kernel is refused here before anything changed, and the call goes on."""

    def change(block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        with pytest.raises(DeadlockError, match="inside a call of the same chain"):
            CHANGES[what](chain, block)
        return NOTIFY_OK

    chain = NotifierChain()
    chain.register(NotifierBlock(change, name="a"))
    chain.register(heard.block("b"))
    assert chain.call(MEM_GOING_ONLINE, ARG) == NOTIFY_OK
    assert (heard, names(chain)) == (["b GOING_ONLINE"], ["a", "b"])


@pytest.mark.fact("1.14")
def test_unregistering_oneself_unguarded_is_a_refusal_with_its_cause() -> None:
    """A callback that lets the DeadlockError out refuses, and the caller is told why."""

    def leaves(block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        block.unregister()
        return NOTIFY_OK

    chain = NotifierChain()
    block = chain.register(NotifierBlock(leaves, name="leaves"))
    answer = chain.call(MEM_GOING_ONLINE, ARG)
    assert (answer, answer.callback, block.registered) == (NOTIFY_BAD, block, True)
    assert isinstance(answer.cause, DeadlockError)
    block.unregister()
    assert names(chain) == []


@pytest.mark.fact("1.14")
def test_registering_with_the_machine_from_inside_a_callback_is_an_error_also_while_another_thread_registers() -> None:
    """A sure deadlock is an error at once and never a hang, whoever else is registering."""
    machine = Machine.boot()
    caught: list[BaseException] = []
    inside, go = threading.Event(), threading.Event()

    def registers(block: NotifierBlock, action: Any, arg: Any) -> NotifyResult:
        inside.set()
        assert go.wait(30)
        try:
            machine.hotplug_memory_notifier(lambda *_: NOTIFY_OK)
        except DeadlockError as error:
            caught.append(error)
        return NOTIFY_OK

    machine.hotplug_memory_notifier(registers)
    caller = in_thread(lambda: machine.memory_notify(MEM_ONLINE, ARG), "caller")
    assert inside.wait(30)
    other = in_thread(lambda: machine.hotplug_memory_notifier(lambda *_: NOTIFY_DONE), "other")
    until_parked(other)
    go.set()
    assert caller.result(timeout=10) == NOTIFY_OK
    other.result(timeout=10)
    assert [type(error) for error in caught] == [DeadlockError]


# -- what Python adds: wrong answers and exceptions


@pytest.mark.parametrize("wrong", [None, True, 1, 0x8002, "NOTIFY_OK"])
@pytest.mark.parametrize("action", ASKING)
def test_a_wrong_answer_to_a_question_is_a_refusal(heard: Heard, action: MemoryAction, wrong: object) -> None:
    """Something that is no NotifyResult refuses, ends the chain, and the cause names callback and answer."""
    chain = heard.chain(NOTIFY_OK, wrong, NOTIFY_OK)
    answer = chain.call(action, ARG)
    assert (answer, answer.callback, len(heard)) == (NOTIFY_BAD, chain.blocks[1], 2)
    assert isinstance(answer.cause, WrongAnswer)
    assert (answer.cause.answer, answer.cause.block, isinstance(answer.cause, TypeError)) == (wrong, chain.blocks[1], True)
    assert f"callback b (priority 0) answered {wrong!r}" in str(answer.cause)
    assert chain.blocks[1].errors == 0


@pytest.mark.parametrize("action", TELLING)
def test_a_wrong_answer_to_news_is_logged_and_counted_and_the_chain_goes_on(
    heard: Heard, action: MemoryAction, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is nothing to refuse the others must hear; the error is reported and counted on the block."""
    chain = heard.chain(None, NOTIFY_OK)
    assert chain.call(action, ARG) == NOTIFY_OK
    assert [block.errors for block in chain.blocks] == [1, 0]
    assert len(heard) == 2
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("memhp.notifier", logging.ERROR)
    assert f"callback a (priority 0) raised in {action.name}" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is WrongAnswer


@pytest.mark.parametrize("action", ASKING)
def test_an_exception_at_a_question_is_a_refusal_with_its_cause(heard: Heard, action: MemoryAction) -> None:
    """A callback that raises refuses (BAD); the very exception is the answer's cause and nobody after it is asked."""
    boom = RuntimeError("boom")
    chain = heard.chain(NOTIFY_OK, boom, NOTIFY_OK)
    answer = chain.call(action, ARG)
    assert (int(answer), answer.callback, answer.cause) == (0x8002, chain.blocks[1], boom)
    assert len(heard) == 2


@pytest.mark.parametrize("action", TELLING)
def test_an_exception_at_news_is_reported_and_the_chain_goes_on(
    heard: Heard, action: MemoryAction, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises where nothing can be refused counts as DONE; the log has the exception."""
    chain = heard.chain(RuntimeError("first"), NOTIFY_OK, RuntimeError("second"))
    assert chain.call(action, ARG) == NOTIFY_DONE
    assert [block.errors for block in chain.blocks] == [1, 0, 1]
    assert len(heard) == 3
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["first", "second"]


def test_an_action_that_nobody_declared_refusable_is_news(heard: Heard) -> None:
    """A chain of other actions says itself which of them an exception refuses."""
    lax, strict = NotifierChain("lax"), NotifierChain("strict", refuses=lambda action: action == "ask")
    for chain in (lax, strict):
        chain.register(heard.block("a", RuntimeError("boom")))
    assert [int(chain.call(action, None)) for chain in (lax, strict) for action in ("ask", "tell")] == [0, 0, 0x8002, 0]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("action", TELLING)
def test_ctrl_c_at_news_is_raised_when_all_have_heard(
    heard: Heard, action: MemoryAction, interrupt: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """What has happened has happened: the rest of the chain hears of it, and then the interrupt takes effect."""
    chain = heard.chain(NOTIFY_OK, interrupt(), NOTIFY_OK)
    with pytest.raises(interrupt):
        chain.call(action, ARG)
    assert [line[0] for line in heard] == ["a", "b", "c"]
    chain.unregister(chain.blocks[0])  # the lock is free again


@pytest.mark.parametrize("action", ASKING)
def test_ctrl_c_at_a_question_is_raised_at_once(heard: Heard, action: MemoryAction) -> None:
    """At a question the interrupt ends the call where it is; the chain's lock is free afterwards."""
    chain = heard.chain(NOTIFY_OK, KeyboardInterrupt(), NOTIFY_OK)
    with pytest.raises(KeyboardInterrupt):
        chain.call(action, ARG)
    assert [line[0] for line in heard] == ["a", "b"]
    chain.unregister(chain.blocks[0])


# -- registering in Python's manner


def test_a_decorated_function_is_registered_and_stays_callable() -> None:
    """As a decorator it gives the block, which can be called and unregistered."""
    machine = Machine.boot()
    heard: list[str] = []

    @machine.hotplug_memory_notifier(priority=10)
    def first(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        heard.append(f"first {action.name}")
        return NOTIFY_OK

    @machine.hotplug_memory_notifier()
    def second(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        heard.append(f"second {action.name}")
        return NOTIFY_DONE

    @machine.hotplug_memory_notifier
    def third(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        heard.append(f"third {action.name}")
        return NOTIFY_OK

    machine.memory_notify(MEM_ONLINE, ARG)
    second(second, MEM_OFFLINE, ARG)
    third.unregister()
    machine.memory_notify(MEM_OFFLINE, ARG)
    assert heard == [
        "first MEM_ONLINE",
        "second MEM_ONLINE",
        "third MEM_ONLINE",
        "second MEM_OFFLINE",
        "first MEM_OFFLINE",
        "second MEM_OFFLINE",
    ]
    assert (first.priority, second.priority) == (10, 0)


@pytest.mark.fact("1.2")
def test_the_same_function_at_the_same_priority_is_registered_once() -> None:
    """A machine refuses a function that it has at that priority; another priority, or a second block, is another matter."""
    machine = Machine.boot()

    def callback(block: NotifierBlock, action: MemoryAction, arg: MemoryNotify) -> NotifyResult:
        return NOTIFY_OK

    one = machine.hotplug_memory_notifier(callback)
    with pytest.raises(AlreadyRegistered) as caught:
        machine.hotplug_memory_notifier(callback)
    two = machine.hotplug_memory_notifier(callback, 1)
    three = machine.memory_chain.register(NotifierBlock(callback))
    assert (caught.value.errno, caught.value.block) == (errno.EEXIST, one)
    assert machine.memory_chain.blocks == (two, one, three)


@pytest.mark.parametrize("callback", [None, 5, "callback"])
def test_a_callback_that_cannot_be_called_is_invalid(callback: Any) -> None:
    """A block refuses at once what could only fail when memory goes."""
    with pytest.raises(InvalidInput) as caught:
        NotifierBlock(callback)
    assert (caught.value.value, caught.value.where) == (callback, "callback")


@pytest.mark.parametrize("priority", [2**31, -(2**31) - 1, 1.5, "10", None, True])
def test_a_priority_that_is_no_c_int_is_invalid(priority: Any) -> None:
    """A priority is a C int; a bool is no number here."""
    with pytest.raises(InvalidInput) as caught:
        NotifierBlock(lambda *_: NOTIFY_OK, priority)
    assert (caught.value.value, caught.value.where) == (priority, "priority")


def test_a_block_is_named_after_its_callback_unless_it_is_told_a_name() -> None:
    """Messages name a function by its qualified name, an object by its class, and a given name goes before both."""
    blocks = [NotifierBlock(names), NotifierBlock(Slow([]), 3), NotifierBlock(names, -1, "mine")]  # type: ignore[arg-type]
    assert [str(block) for block in blocks] == ["names (priority 0)", "Slow (priority 3)", "mine (priority -1)"]
    assert repr(blocks[2]) == "<NotifierBlock mine priority=-1>"


# -- observers


def test_an_observer_sees_action_answer_and_error_of_each_callback(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    """After each callback an observer is told who was called, with what, and what came of it."""
    boom = RuntimeError("boom")
    chain = heard.chain(NOTIFY_OK, boom, None, NOTIFY_STOP, NOTIFY_OK)
    calls: list[Call] = []
    chain.observe(calls.append)
    assert chain.call(MEM_ONLINE, ARG) == NOTIFY_STOP
    assert [(call.block.name, call.action, call.arg, call.answer) for call in calls] == [
        ("a", MEM_ONLINE, ARG, NOTIFY_OK),
        ("b", MEM_ONLINE, ARG, None),
        ("c", MEM_ONLINE, ARG, None),
        ("d", MEM_ONLINE, ARG, NOTIFY_STOP),
    ]
    assert [type(call.error) for call in calls] == [type(None), RuntimeError, WrongAnswer, type(None)]
    assert calls[1].error is boom
    assert all(call.seconds >= 0 for call in calls)
    assert [block.errors for block in chain.blocks] == [0, 1, 1, 0, 0]


def test_an_observer_sees_blocks_that_come_later_and_nothing_after_it_stopped(heard: Heard) -> None:
    """An observer watches the chain, not its present blocks; two observers don't disturb each other."""
    chain = heard.chain(NOTIFY_OK)
    first: list[str] = []
    second: list[str] = []
    stop_first = chain.observe(lambda call: first.append(call.block.name))
    chain.observe(lambda call: second.append(call.block.name))
    late = chain.register(heard.block("late"))
    chain.call(MEM_GOING_ONLINE, ARG)
    late.unregister()
    stop_first()
    chain.call(MEM_ONLINE, ARG)
    assert (first, second) == (["a", "late"], ["a", "late", "a"])


def test_an_observed_chain_answers_as_an_unobserved_one(heard: Heard) -> None:
    """Observing changes neither the value, nor whose it is, nor its cause."""
    boom = RuntimeError("boom")
    chain = heard.chain(NOTIFY_OK, boom)
    chain.observe(lambda call: None)
    answer = chain.call(MEM_GOING_ONLINE, ARG)
    assert (answer, answer.callback, answer.cause) == (NOTIFY_BAD, chain.blocks[1], boom)


def test_an_observer_sees_ctrl_c(heard: Heard) -> None:
    """Also a callback that is interrupted is told to observers, with the interrupt as its error."""
    chain = heard.chain(KeyboardInterrupt())
    errors: list[BaseException | None] = []
    chain.observe(lambda call: errors.append(call.error))
    with pytest.raises(KeyboardInterrupt):
        chain.call(MEM_GOING_ONLINE, ARG)
    assert [type(error) for error in errors] == [KeyboardInterrupt]


def test_an_observer_that_raises_is_no_participant(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    """What an observer does wrong is logged; it neither refuses nor keeps other observers from seeing."""
    chain = heard.chain(NOTIFY_OK)
    seen: list[str] = []

    def broken(call: Call) -> None:
        raise ZeroDivisionError

    chain.observe(broken)
    chain.observe(lambda call: seen.append(call.block.name))
    assert chain.call(MEM_GOING_ONLINE, ARG) == NOTIFY_OK
    assert (seen, chain.blocks[0].errors) == (["a"], 0)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
