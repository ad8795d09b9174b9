"""One notify over many callbacks: NotifierChain.call, a bare loop, pluggy, blinker."""

from __future__ import annotations

from itertools import repeat

import blinker
import pluggy

from bench.measure import Figure, Rounds, Runner, heading, quiet, race, ratio, ratio_figure, standing
from memhp import MemoryAction, MemoryNotify
from memhp.notifier import NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP_MASK, Callback, NotifierBlock, NotifierChain, NotifyResult
from memhp.units import Pfn

SIZES = (1, 16, 100)
ACTION = MemoryAction.MEM_ONLINE
ARG = MemoryNotify(Pfn(1 << 18), 1 << 15)

hookspec = pluggy.HookspecMarker("bench")
hookimpl = pluggy.HookimplMarker("bench")


def run() -> list[Figure]:
    """Race them at each size."""
    results: dict[int, Rounds] = {}
    for size in SIZES:
        heading(
            f"one notify, {size} callbacks that answer NOTIFY_OK" if size > 1 else "one notify, 1 callback that answers NOTIFY_OK"
        )
        with quiet():
            results[size] = race(_competitors(size))
        standing(results[size], "bare loop")
    figures = [ratio_figure("notify, 16 callbacks / bare loop", 1.3, ratio(results[16], "memhp", "bare loop"))]
    for library in ("pluggy", "blinker"):
        shares = {size: ratio(rounds, "memhp", library) for size, rounds in results.items()}
        measured = ", ".join(f"{share:.2f}" for share in shares.values())
        figures.append(Figure(f"notify, {_sizes()} / {library}", "< 1 x each", f"{measured} x", max(shares.values()) < 1))
    return figures


def _sizes() -> str:
    return ", ".join(map(str, SIZES))


def _competitors(size: int) -> dict[str, Runner]:
    return {"bare loop": _bare(size), "memhp": _memhp(size), "pluggy": _pluggy(size), "blinker": _blinker(size)}


def _callback() -> Callback:
    # As many functions as callbacks: one function over and over is something that the interpreter makes faster.
    def content(block: NotifierBlock, action: object, arg: object) -> NotifyResult:
        return NOTIFY_OK

    return content


def bare_loop(callbacks: tuple[Callback, ...], block: NotifierBlock, action: object, arg: object) -> NotifyResult:
    """Call them all until one sets the stop bit: the least that a chain must do."""
    answer = NOTIFY_DONE
    for callback in callbacks:
        answer = callback(block, action, arg)
        if answer & NOTIFY_STOP_MASK:
            break
    return answer


def _bare(size: int) -> Runner:
    callbacks = tuple(_callback() for _ in range(size))
    block = NotifierBlock(callbacks[0])

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            bare_loop(callbacks, block, ACTION, ARG)

    return runner


def _memhp(size: int) -> Runner:
    chain = NotifierChain()
    for _ in range(size):
        chain.register(NotifierBlock(_callback()))

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            chain.call(ACTION, ARG)

    return runner


class _Spec:
    @hookspec
    def notify(self, block: object, action: object, arg: object) -> NotifyResult:
        raise NotImplementedError


def _plugin() -> object:
    class Plugin:
        @hookimpl
        def notify(self, block: object, action: object, arg: object) -> NotifyResult:
            return NOTIFY_OK

    return Plugin()


def _pluggy(size: int) -> Runner:
    manager = pluggy.PluginManager("bench")
    manager.add_hookspecs(_Spec)
    for _ in range(size):
        manager.register(_plugin())
    hook = manager.hook

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            hook.notify(block=None, action=ACTION, arg=ARG)

    return runner


def _blinker(size: int) -> Runner:
    signal = blinker.Signal()
    for _ in range(size):

        def receiver(sender: object, action: object, arg: object) -> NotifyResult:
            return NOTIFY_OK

        signal.connect(receiver, weak=False)

    def runner(times: int) -> None:
        for _ in repeat(None, times):
            signal.send(None, action=ACTION, arg=ARG)

    return runner
