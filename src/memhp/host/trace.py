"""Hearing the notifier chain of this machine's kernel, live: kprobes in a tracing instance of their own.

Where things stand in the chain's argument is taken from the kernel's own types (BTF), so it is right for any release; without
BTF nothing is guessed. The names of the probes have our process in them, so that two watchers don't meet. A small shell
process holds a pipe to us: when we end, however we end, it removes instance and probes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import time
from pathlib import Path

from memhp.abi.btf import BTF, enumerators, members
from memhp.abi.tracing import CALL, RETURN, ChainLayout, Line, definitions, layout_from_btf, read_line
from memhp.errors import HostError, InvalidInput
from memhp.events import MemoryAction
from memhp.host.watch import ChainCalled

__all__ = ["ChainReader", "ChainTracer", "running_layout"]

_PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_CHAIN = "blocking_notifier_call_chain"
_ALONE = "memory_notify"
_HEAD = "memory_chain"
_GROUP = "memhp_"
_MOST = 1 << 16

# Waits for the end of its input, which comes when we close the pipe or die; then takes everything away again.
_GUARD = """
while read line; do :; done
for probe in memhp_call memhp_return; do echo 0 >"$1/instances/$2/events/$2/$probe/enable"; done
rmdir "$1/instances/$2" || { sleep 1; rmdir "$1/instances/$2"; }
for probe in memhp_call memhp_return; do echo "-:$2/$probe" >>"$1/kprobe_events"; done
"""


def running_layout() -> ChainLayout:
    """Give the layout of the chain's argument in the running kernel.

    Raises:
        HostError: the kernel doesn't describe its types.
    """
    try:
        data = Path(BTF).read_bytes()
        found = members(data, "memory_notify")
        numbers = enumerators(data, "MEM_ONLINE")
    except (OSError, InvalidInput) as error:
        hint = "the kernel needs CONFIG_DEBUG_INFO_BTF, so that its notifier calls aren't misread"
        raise HostError(BTF, f"the kernel's types can't be read ({error})", hint=hint) from error
    if found is None:
        raise HostError(BTF, "the kernel has no struct memory_notify", hint="it needs CONFIG_MEMORY_HOTPLUG")
    return layout_from_btf(found, numbers)


class ChainReader:
    """Makes calls of the text that the probes leave in the trace.

    Args:
        layout: the running kernel's.
        began: what to add to the trace's times to get seconds since 1970.
        page_size: bytes.
    """

    def __init__(self, layout: ChainLayout, began: float, page_size: int) -> None:
        self._layout = layout
        self._began = began
        self._page_size = page_size
        self._rest = b""
        self._call: Line | None = None
        self._told = False

    def feed(self, data: bytes) -> list[ChainCalled]:
        """Read more of it; gives the calls that have returned."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = (self._read(line.decode(errors="replace")) for line in lines)
        return [called for called in found if called is not None]

    def _read(self, text: str) -> ChainCalled | None:
        # The chain is called under mem_hotplug_lock and never from within itself, so the next return belongs to the call.
        line = read_line(text)
        if line is None:
            return None
        if line.kind == CALL:
            self._call, self._told = line, False
            return None
        call, self._call = self._call, None
        return None if call is None else self._called(call, line)

    def hanging(self, now: float) -> ChainCalled | None:
        """Give the call that began a second or more before ``now``, once."""
        if self._call is None or self._told or now < self._began + self._call.time + 1:
            return None
        self._told = True
        return self._called(self._call, None)

    def _called(self, call: Line, returned: Line | None) -> ChainCalled:
        fields = call.fields
        number = int(fields["action"])
        action = self._layout.actions.get(number)
        # MEM_PREPARE_ONLINE and MEM_FINISH_OFFLINE leave the nodes as they found them on the stack (fact 2.7).
        says_nodes = "nid" in fields and action not in {MemoryAction.MEM_PREPARE_ONLINE, MemoryAction.MEM_FINISH_OFFLINE}
        return ChainCalled(
            time=self._began + call.time,
            action=action,
            number=number,
            start=int(fields["start"]) * self._page_size,
            size=int(fields["nr"]) * self._page_size,
            nodes=(int(fields["normal"]), int(fields["nid"])) if says_nodes else None,
            answer=int(returned.fields["answer"]) if returned else None,
            seconds=returned.time - call.time if returned else None,
        )


class ChainTracer:
    """Hears each call of the memory notifier chain, with its answer and how long it took; needs root.

    On kernels before 6.9 ``memory_notify`` is probed in place of the function that all chains share; where a compiler has
    inlined it, a call isn't heard.

    Raises:
        HostError: tracing is not possible here; the error says what is missing. Nothing is left behind.
    """

    def __init__(self) -> None:
        layout = running_layout()
        self._place = _tracefs()
        self._group = f"{_GROUP}{os.getpid()}"
        self._instance = f"{self._place}/instances/{self._group}"
        remove_stale(self._place)
        head = _address(_HEAD)
        self._guard = self._make_guard()
        try:
            self._set_up(layout, head)
            self._pipe = os.open(f"{self._instance}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._remove()
            raise _refused(error) from error
        self._reader = ChainReader(layout, time.time() - time.monotonic(), os.sysconf("SC_PAGE_SIZE"))

    def _make_guard(self) -> subprocess.Popen[bytes]:
        command = ["/bin/sh", "-c", _GUARD, "memhp-guard", self._place, self._group]
        quiet = subprocess.DEVNULL
        # A session of its own: Ctrl-C is for us, and must not stop it from tidying up.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603

    def _set_up(self, layout: ChainLayout, head: str) -> None:
        events = f"{self._place}/kprobe_events"
        chain = definitions(_CHAIN, 2, layout.offsets, head=True, group=self._group)
        alone = definitions(_ALONE, 1, layout.offsets, head=False, group=self._group)
        try:
            for definition in chain:
                _append(events, definition)
            condition = f"head==0x{head}"
        except OSError as error:
            # Arguments can be had at a return since Linux 6.9. Before, the chain's own function is there to be probed.
            if error.errno != errno.EINVAL:
                raise
            _append(events, f"-:{self._group}/{CALL}")
            for definition in alone:
                _append(events, definition)
            condition = "0"
        os.mkdir(self._instance)
        _append(f"{self._instance}/trace_clock", "mono")
        for probe in (CALL, RETURN):
            place = f"{self._instance}/events/{self._group}/{probe}"
            _append(f"{place}/filter", condition)  # 0 is none
            _append(f"{place}/enable", "1")

    def fileno(self) -> int:
        """Give the descriptor of the trace."""
        return self._pipe

    def take(self) -> list[ChainCalled]:
        """Give the calls that have returned since the last time."""
        found: list[ChainCalled] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, _MOST):
                found += self._reader.feed(data)
        return found

    def hanging(self) -> ChainCalled | None:
        """Give the call that has been running for a second or more, once; it is given again when it returns."""
        return self._reader.hanging(time.time())

    def close(self) -> None:
        """Remove instance and probes; when it returns they are gone."""
        os.close(self._pipe)
        self._remove()

    def _remove(self) -> None:
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait()


def remove_stale(place: str) -> None:
    """Remove what watchers left whose guard was killed with them."""
    with contextlib.suppress(OSError):
        text = Path(f"{place}/kprobe_events").read_text(encoding="ascii")
        groups = set(re.findall(rf"[pr]\d*:({_GROUP}(\d+))/", text))
        for group, pid in groups:
            if not os.path.exists(f"/proc/{pid}"):
                command = ["/bin/sh", "-c", _GUARD, "memhp-guard", place, group]
                subprocess.run(command, check=False, input=b"", capture_output=True)  # noqa: S603 - ours


def _tracefs() -> str:
    for place in _PLACES:
        if os.path.exists(f"{place}/kprobe_events"):
            return place
    hint = "mount -t tracefs tracefs /sys/kernel/tracing, as root; the kernel needs CONFIG_KPROBE_EVENTS"
    raise HostError(_PLACES[0], "there are no kprobe events", hint=hint)


def _address(symbol: str) -> str:
    with open("/proc/kallsyms", encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if len(words) == 3 and words[2] == symbol and int(words[0], 16):
                return words[0]
    hint = "be root; the kernel needs CONFIG_KALLSYMS_ALL, and kernel.kptr_restrict below 2"
    raise HostError("/proc/kallsyms", f"the address of {symbol} isn't there", hint=hint)


def _append(path: str, text: str) -> None:
    # One write, as tracefs wants it; O_TRUNC on kprobe_events would remove everybody's probes.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"{text}\n".encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{path} ({text})") from error
    finally:
        os.close(descriptor)


def _refused(error: OSError) -> HostError:
    hint = "be root" if isinstance(error, PermissionError) else "another tracer may be in the way"
    return HostError(str(error.filename or "tracefs"), error.strerror or str(error), errno=error.errno or 0, hint=hint)
