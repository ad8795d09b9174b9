"""``memhp lab boot`` and the commands that change a running guest."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

from memhp.cli.run import FAILED, HELD
from memhp.errors import DimmRefused, GuestFailed, InvalidInput
from memhp.lab import boot, outside, running
from memhp.lab.console import relay
from memhp.lab.kernels import find_kernel
from memhp.lab.qmp import MemoryDevice
from memhp.lab.rootfs import read_addition
from memhp.lab.selftest import run_selftest
from memhp.units import format_ids, format_size, parse_size

__all__ = ["COMMANDS"]

_SIGNALLED = 128


def _patience(options: argparse.Namespace) -> float:
    if not options.patience > 0:
        raise InvalidInput(options.patience, "--patience", "a number of seconds above 0")
    return float(options.patience)


# -- a guest to work in


def _boot(options: argparse.Namespace) -> int:
    if options.words and options.run:
        raise InvalidInput(options.run, "--run", "either a script or a command, not both")
    additions = [read_addition(text) for text in options.add]
    command: str | list[str] | None = boot.shell_line(options.words) if options.words else None
    if options.run:
        addition, command = boot.script_addition(options.run)
        additions.append(addition)
    session = boot.Session(
        find_kernel(options.kernel),
        shape=boot.make_shape(
            [boot.read_node(text) for text in options.node] if options.node else ("512MiB", 0),
            virtio=[boot.read_virtio(text) for text in options.virtio_mem],
            soft_reserved=[boot.read_soft_reserved(text) for text in options.soft_reserved],
            parameters=options.append,
            slots=options.slots,
            room=options.room,
        ),
        modules=options.module,
        add=additions,
        name=options.name,
        patience=_patience(options),
        shell=command is None,
        terminal=os.environ.get("TERM", "linux"),
    )
    return _shell(session) if command is None else _command(session, command)


def _command(session: boot.Session, command: str | list[str]) -> int:
    with session as guest:
        status = guest.stream(command, _pass_on)
    return _SIGNALLED - status if status < 0 else status


def _pass_on(name: str, data: bytes) -> None:
    stream = sys.stderr if name == "err" else sys.stdout
    stream.flush()
    stream.buffer.write(data)
    stream.flush()


def _shell(session: boot.Session) -> int:
    with session as guest:
        inside = guest.guest
        release, shape = inside.kernel.release, guest.shape
        print(f"Linux {release} with {shape}: guest {inside.name}. Its shell is coming; exit or Ctrl-] ends it.", file=sys.stderr)
        if inside.terminal is None:
            raise GuestFailed("the guest has no console")

        def resized(columns: int, rows: int) -> None:
            inside.wait_for_agent()
            guest.run(["stty", "-F", "/dev/ttyS0", "cols", str(columns), "rows", str(rows)], patience=inside.patience)

        ended = relay(inside.terminal, resized)
        if ended and inside.panicked:
            raise GuestFailed("the guest's kernel panicked")
    return HELD


# -- from outside


def _plug(options: argparse.Namespace) -> int:
    guest = running.find(options.guest)
    device = outside.plug(guest, options.size, options.node, options.name, _patience(options))
    print(f"plugged {device.name} into {guest.name}: {_about(device)}")
    return HELD


def _unplug(options: argparse.Namespace) -> int:
    guest = running.find(options.guest)
    device = outside.unplug(guest, options.dimm, _patience(options))
    print(f"unplugged {device.name} from {guest.name}: {_about(device)}")
    return HELD


def _resize(options: argparse.Namespace) -> int:
    guest = running.find(options.guest)
    size = parse_size(options.size, "SIZE")
    device = outside.resize(guest, size, options.device, _patience(options))
    if device.size != size:
        asked = f"{format_size(size)} asked for, and the guest has {format_size(device.size)} after {options.patience:g} s"
        print(f"memhp: {device.name} of {guest.name}: {asked}; it goes on trying", file=sys.stderr)
        return FAILED
    print(
        f"resized {device.name} of {guest.name}: {format_size(device.size)} of {format_size(device.most)} in node {device.node}"
    )
    return HELD


def _about(device: MemoryDevice) -> str:
    blocks = format_ids(range(device.address // boot.BLOCK, (device.address + device.most) // boot.BLOCK))
    return f"{format_size(device.size)} in node {device.node}, memory{blocks}"


def _ps(options: argparse.Namespace) -> int:
    found = [(guest, outside.devices_of(guest)) for guest in running.guests()]
    if options.json:
        print(json.dumps([_guest_object(guest, devices) for guest, devices in found]))
    elif not found:
        print("no guest runs; memhp lab boot starts one")
    for guest, devices in found if not options.json else ():
        print(
            f"{guest.name:<12} {guest.release}, {guest.shape}; up for {time.time() - guest.started:.0f} s, process {guest.owner}"
        )
        for device in devices:
            asked = "" if device.requested == device.size else f", {format_size(device.requested)} asked for"
            print(f"  {device.name:<10} {device.kind}: {_about(device)}{asked}")
    return HELD


def _guest_object(guest: running.Running, devices: list[MemoryDevice]) -> dict[str, object]:
    return {
        "name": guest.name,
        "release": guest.release,
        "machine": guest.shape,
        "process": guest.owner,
        "qemu": guest.qemu,
        "started": guest.started,
        "devices": [
            {
                "name": device.name,
                "kind": device.kind,
                "node": device.node,
                "address": device.address,
                "size": device.size,
                "requested": device.requested,
                "most": device.most,
            }
            for device in devices
        ],
    }


def _stop(options: argparse.Namespace) -> int:
    guest = running.find(options.guest)
    outside.stop(guest, _patience(options))
    print(f"stopped {guest.name}")
    return HELD


def _selftest(options: argparse.Namespace) -> int:
    kernel = find_kernel(options.kernel)
    verdict = run_selftest(
        kernel,
        _pass_on,
        patience=_patience(options),
        booted=lambda seconds: print(f"Linux {kernel.release} ({kernel.version}) in QEMU, up after {seconds:.1f} s", flush=True),
    )
    for line in verdict.messages:
        print(f"  | {line}")
    print(verdict.text)
    return HELD if verdict.passed else FAILED


def _refusals(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    # What the guest's kernel or QEMU refuses is an answer, not a lab that can't be asked.
    def asked(options: argparse.Namespace) -> int:
        try:
            return command(options)
        except DimmRefused as error:
            print(f"memhp: {error}", file=sys.stderr)
            return FAILED

    return asked


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "boot": _boot,
    "plug": _refusals(_plug),
    "unplug": _refusals(_unplug),
    "resize": _refusals(_resize),
    "ps": _ps,
    "stop": _stop,
    "selftest": _selftest,
}
