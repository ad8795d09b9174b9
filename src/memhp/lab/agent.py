"""What runs in the guest: it does what the lab asks over a serial port, one JSON line for each request and each answer.

It goes into the guest with :mod:`memhp.abi.state` alone, so it imports the standard library and nothing else of memhp.
"""

import contextlib
import json
import os
import re
import select
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from memhp.abi.state import machine_state

__all__ = ["Agent", "encode", "serve"]

MARK = "@memhp "
"""Begins each line that is meant for the lab; whatever else comes over the port is not."""

_MEMORY = "sys/devices/system/memory"
_NODE = "sys/devices/system/node"
_MASKS = ("possible", "online", "has_normal_memory", "has_memory", "has_cpu")
_TRACE = "sys/kernel/tracing/trace"
# Numbers of Linux that the guest's Python does not name.
_NETLINK_KOBJECT_UEVENT = 15
_SO_RCVBUFFORCE = 33
_KERNEL_UEVENTS = 1
_ROOM = 4 << 20
_MOMENT = 0.02


def encode(message: dict[str, Any]) -> bytes:
    """Give a message as it goes over the port; the mark stands in it once, whatever it carries."""
    text = json.dumps(message).replace("@", "\\u0040")
    return f"{MARK}{text}\n".encode()


class Agent:
    """Does what requests say, below ``root``.

    Args:
        root: the root of the files; tests give another one.
        uevents: a socket that hears uevents; None hears none.
    """

    def __init__(self, root: str = "/", uevents: socket.socket | None = None) -> None:
        self._root = root
        self._uevents = uevents
        self.say: Callable[[dict[str, Any]], None] = lambda message: None
        """Sends a message before the answer."""
        self._does: dict[str, Callable[..., Any]] = {
            "read": self.read,
            "grep": self.grep,
            "write": self.write,
            "run": self.run,
            "call": self.call,
            "blocks": self.blocks,
            "machine": self.machine,
            "state": self.state,
            "begin": self.begin,
            "settle": self.settle,
            "end": self.end,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request; an error of the system is an answer with its number."""
        given = dict(request)
        number, verb = given.pop("id"), given.pop("do")
        try:
            if verb == "call":
                given["id"] = number
            return {"id": number, "value": self._does[verb](**given)}
        except OSError as error:
            return {"id": number, "errno": error.errno or 0, "message": error.strerror or str(error)}

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))

    def read(self, path: str) -> str:
        """Give a file's text; bytes that are no UTF-8 as escapes."""
        descriptor = os.open(self._path(path), os.O_RDONLY)
        try:
            parts = iter(lambda: os.read(descriptor, 1 << 16), b"")
            return b"".join(parts).decode(errors="backslashreplace")
        finally:
            os.close(descriptor)

    def grep(self, path: str, pattern: str) -> list[str]:
        """Give the lines of a file that match; long files (kallsyms) would take long over the port."""
        return [line for line in self.read(path).splitlines() if re.search(pattern, line)]

    def write(self, path: str, text: str, append: bool = False) -> int:  # noqa: FBT001, FBT002 - JSON gives it by name
        """Write to a file with one ``write()``."""
        descriptor = os.open(self._path(path), os.O_WRONLY | (os.O_APPEND if append else 0))
        try:
            return os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def run(self, command: list[str]) -> dict[str, Any]:
        """Run a program; gives its exit status and what it prints to standard error."""
        reading, writing = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, writing, 2), (os.POSIX_SPAWN_DUP2, writing, 1)]
        process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        os.close(writing)
        said = b"".join(iter(lambda: os.read(reading, 1 << 16), b""))
        os.close(reading)
        _, status = os.waitpid(process, 0)
        return {"status": os.waitstatus_to_exitcode(status), "said": said.decode(errors="backslashreplace")}

    def call(self, command: list[str], id: int) -> int:  # noqa: A002 - JSON gives it by name
        """Run a program; what it writes is said as it comes, byte for byte. Gives its exit status.

        What it leaves in the background doesn't hold it up.
        """
        reading: dict[int, str] = {}
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        for target, name in ((1, "out"), (2, "err")):
            end, writing = os.pipe()
            reading[end] = name
            actions += [(os.POSIX_SPAWN_DUP2, writing, target)]
        try:
            # No session of its own: its leader would take a terminal that it opens (stty) away from the shell there.
            process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setpgroup=0)
            self._listen(reading, process, id)
        finally:
            for descriptor in [*reading, *(action[1] for action in actions[1:])]:
                os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _listen(self, reading: dict[int, str], process: int, number: int) -> None:
        # Our copies of the writing ends stay open, so there is no end of file: the end of the process ends it.
        ended = os.pidfd_open(process)
        try:
            over = False
            while True:
                ready = select.select([*reading, *([] if over else [ended])], [], [], 0 if over else None)[0]
                if not ready:
                    return
                over = over or ended in ready
                for descriptor in set(ready) - {ended}:
                    data = os.read(descriptor, 1 << 12)
                    self.say({"id": number, "stream": reading[descriptor], "data": data.decode("latin-1")})
        finally:
            os.close(ended)

    def _text(self, path: str) -> str:
        try:
            return self.read(path).strip()
        except OSError:
            return ""

    def blocks(self) -> list[dict[str, Any]]:
        """Give id, node, state and zones of every block."""
        ids = sorted(int(name[6:]) for name in os.listdir(self._path(_MEMORY)) if re.fullmatch(r"memory\d+", name))
        return [self._block(number) for number in ids]

    def _block(self, number: int) -> dict[str, Any]:
        path = f"{_MEMORY}/memory{number}"
        nodes = [int(name[4:]) for name in os.listdir(self._path(path)) if re.fullmatch(r"node\d+", name)]
        return {
            "id": number,
            "node": min(nodes, default=0),
            "state": self._text(f"{path}/state"),
            "zones": self._text(f"{path}/valid_zones").split(),
        }

    def machine(self) -> dict[str, Any]:
        """Give the whole picture."""
        total = re.search(r"^MemTotal:\s+(\d+) kB", self._text("proc/meminfo"), re.MULTILINE)
        return {
            "release": os.uname().release,
            "block_size": int(self._text(f"{_MEMORY}/block_size_bytes"), 16),
            "memory": int(total[1]) << 10 if total else 0,
            "nodes": {mask: self._text(f"{_NODE}/{mask}") for mask in _MASKS},
            "blocks": self.blocks(),
        }

    def state(self) -> dict[str, str]:
        """Give what userland sees."""
        return machine_state(self.read, lambda path: os.listdir(self._path(path)))

    def begin(self) -> None:
        """Forget the trace and the uevents so far."""
        os.close(os.open(self._path(_TRACE), os.O_WRONLY | os.O_TRUNC))
        list(self._heard(0.0))

    def settle(self, work: str, queue: str, end: str, least: int) -> None:
        """Wait until as much of a kind of work has ended as was queued since ``begin``, and at least so much was queued."""
        while True:
            lines = [line for line in self.read(_TRACE).splitlines() if work in line]
            queued, ended = (sum(f" {event}: " in line for line in lines) for event in (queue, end))
            if queued == ended >= least:
                return
            select.select([], [], [], _MOMENT)

    def end(self, quiet: float) -> dict[str, Any]:
        """Give the lines of the trace and the uevents since ``begin``, when none came for ``quiet`` seconds."""
        uevents = list(self._heard(quiet))
        lines = [line.strip() for line in self.read(_TRACE).splitlines() if line.strip() and not line.startswith("#")]
        return {"trace": lines, "uevents": uevents}

    def _heard(self, quiet: float) -> Iterator[str]:
        while self._uevents is not None and select.select([self._uevents], [], [], quiet)[0]:
            yield self._uevents.recv(1 << 16).decode(errors="backslashreplace")


def serve(agent: Agent, port: int) -> None:
    """Answer requests from the port until it ends."""
    agent.say = lambda message: _write_all(port, encode(message))
    rest = b""
    while True:
        got = os.read(port, 1 << 16)
        if not got:
            return
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            if line.startswith(MARK.encode()):
                _write_all(port, encode(agent.answer(json.loads(line[len(MARK) :]))))


def _write_all(port: int, data: bytes) -> None:
    while data:
        data = data[os.write(port, data) :]


def main() -> None:
    """Answer over the second serial port."""
    import termios  # noqa: PLC0415 - the tests of the agent need none
    import tty  # noqa: PLC0415

    hears = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT)
    with contextlib.suppress(OSError):
        hears.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)  # the uevents of many blocks at once
    hears.bind((0, _KERNEL_UEVENTS))
    port = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port, termios.TCSANOW)
    _write_all(port, encode({"id": 0, "value": sys.version}))
    serve(Agent(uevents=hears), port)


if __name__ == "__main__":
    main()
