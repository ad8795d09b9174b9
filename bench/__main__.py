"""``python -m bench [GROUP...]``: print the figures of all groups, or of those named."""

from __future__ import annotations

import importlib
import os
import platform
import sys

from bench.measure import Figure, verdict

GROUPS = ("notify", "readside", "contention", "pairs", "boot", "explain", "offline", "listing", "pages", "study", "explore")


def main(names: list[str]) -> int:
    """Run the groups; 2 if one doesn't exist or a competitor isn't installed. Times are never an error."""
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        print(f"no group {unknown[0]!r}; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {load}")
    figures: list[Figure] = []
    for name in names or GROUPS:
        try:
            group = importlib.import_module(f"bench.{name}")
        except ModuleNotFoundError as error:
            print(f"{error}: run `make bench`, or pip install -e '.[bench]'", file=sys.stderr)
            return 2
        figures += group.run()
    verdict(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
