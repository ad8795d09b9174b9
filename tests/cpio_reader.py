"""A naive reader of archives in newc form."""

from __future__ import annotations

from collections.abc import Iterator


def unpack(archive: bytes) -> Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    """Read an archive by the letter of cpio(5)."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in range(13)]
        length, size = numbers[11], numbers[6]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at = -(-(at + 110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return
        yield name, numbers[1], archive[at : at + size], (numbers[9], numbers[10])
        at = -(-(at + size) // 4) * 4
