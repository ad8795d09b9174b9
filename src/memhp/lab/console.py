"""A guest's console on this terminal."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["ESCAPE", "relay"]

ESCAPE = b"\x1d"
"""Ctrl-]: ends the guest from here, whatever it does."""


def relay(console: socket.socket, resized: Callable[[int, int], object], source: int = 0, target: int = 1) -> bool:
    """Carry keys and output until the guest ends; the terminal is as before afterwards, however this ends.

    Args:
        console: the guest's.
        resized: called with columns and rows, at first and whenever the terminal's size changes.
        source: where the keys come from; if that is no terminal, its end is not the guest's.
        target: where the output goes.

    Returns:
        Whether the guest ended by itself; otherwise Ctrl-] was pressed.
    """
    with _raw(source), _woken_by_resizing() as woken:
        if os.isatty(source):
            resized(*shutil.get_terminal_size())
        reading = [console.fileno(), source, woken]
        while True:
            ready = select.select(reading, [], [])[0]
            if woken in ready:
                os.read(woken, 1 << 10)
                resized(*shutil.get_terminal_size())
            if console.fileno() in ready:
                data = _received(console)
                if not data:
                    return True
                _write_all(target, data)
            if source in ready:
                keys = os.read(source, 1 << 10)
                if not keys:
                    reading.remove(source)
                elif ESCAPE in keys:
                    return False
                else:
                    with contextlib.suppress(OSError):
                        console.sendall(keys)


def _received(console: socket.socket) -> bytes:
    try:
        return console.recv(1 << 16)
    except ConnectionError:
        return b""


def _write_all(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


@contextlib.contextmanager
def _raw(source: int) -> Iterator[None]:
    if not os.isatty(source):
        yield
        return
    before = termios.tcgetattr(source)
    tty.setraw(source, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
        sys.stdout.flush()


@contextlib.contextmanager
def _woken_by_resizing() -> Iterator[int]:
    reading, writing = os.pipe()

    def changed(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writing, b"x")

    os.set_blocking(writing, False)
    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield reading
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(reading)
        os.close(writing)
