"""Which kernels there are: Debian packages, downloaded and unpacked into a cache directory, never installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memhp.errors import InvalidInput, LabError, LabMissing

__all__ = ["SERIES", "Kernel", "cache_dir", "fetch", "installed", "kernel_of", "userland", "userland_packages"]

Run = Callable[[Sequence[str], Path], str]

SERIES = {
    "6.1": ("linux-image-cloud-amd64",),
    "6.12": ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"),
}
"""Packages that depend on the newest kernel of a series; which of them do depends on the Debian release."""

_PYTHON = "python3-minimal"
_LIBRARIES = ("libc6", "libexpat1", "zlib1g")
_ABOUT = "about.json"
_MINUTES = 15


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that can be booted."""

    series: str
    """``6.1``: what ``--kernel`` says."""
    release: str
    """What ``uname -r`` says in the guest."""
    version: str
    """The exact version of the package."""
    root: Path
    """Where the package is unpacked."""

    @property
    def image(self) -> Path:
        """The kernel itself."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    def module(self, name: str) -> Path:
        """Give the file of a module, compressed or not.

        Raises:
            LabError: the package does not have it.
        """
        tree = self.root / "lib" / "modules" / self.release
        found = sorted(tree.rglob(f"{name}.ko*"))
        if not found:
            raise LabError(f"the kernel {self.release} has no module {name}", "fetch it again: memhp lab fetch")
        return found[0]


def cache_dir() -> Path:
    """Give the directory where everything that was fetched lies."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memhp"


def installed(cache: Path | None = None) -> list[Kernel]:
    """List the kernels that were fetched, by series."""
    root = (cache or cache_dir()) / "kernels"
    found = []
    for series in SERIES:
        about = _about(root / series)
        if about:
            found.append(Kernel(series, about["release"], about["version"], root / series))
    return found


def kernel_of(series: str, cache: Path | None = None) -> Kernel:
    """Give the kernel of a series.

    Raises:
        InvalidInput: memhp doesn't know that series.
        LabMissing: it was not fetched.
    """
    if series not in SERIES:
        raise InvalidInput(series, "--kernel", " or ".join(SERIES))
    for kernel in installed(cache):
        if kernel.series == series:
            return kernel
    raise LabMissing([f"Linux {series}"], f"get it with: memhp lab fetch --kernel {series}")


def userland(cache: Path | None = None) -> Path:
    """Give the directory with what runs in the guest besides the kernel: busybox, and a Python.

    Raises:
        LabMissing: it was not fetched.
    """
    root = (cache or cache_dir()) / "guest"
    if not _about(root):
        raise LabMissing(["the guest's programs"], "get them with: memhp lab fetch")
    return root


def userland_packages(cache: Path | None = None) -> dict[str, str]:
    """Give the packages of the guest's programs with their versions; empty if they were not fetched."""
    return _about((cache or cache_dir()) / "guest")


def _about(directory: Path) -> dict[str, str]:
    try:
        loaded = json.loads((directory / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


# -- fetching


def fetch(series: Sequence[str], say: Callable[[str], None], cache: Path | None = None, run: Run | None = None) -> list[Kernel]:
    """Download and unpack the kernels and the guest's programs; what is there in the newest version stays.

    Args:
        series: which kernels.
        say: hears what is done.
        cache: where to; :func:`cache_dir` if not given.
        run: runs a command in a directory and gives what it prints.

    Raises:
        LabMissing: apt or dpkg-deb isn't here.
        LabError: apt can't give a package.
    """
    for word in series:
        if word not in SERIES:
            raise InvalidInput(word, "--kernel", " or ".join(SERIES))
    missing = [] if run else [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise LabMissing(missing, "memhp gets kernels as Debian packages; run it on Debian or Ubuntu, or in a container of one")
    fetcher = _Fetcher(cache or cache_dir(), say, run or _run)
    fetcher.userland()
    return [fetcher.kernel(word) for word in series]


def _run(command: Sequence[str], directory: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed programs, arguments that apt named
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=True,
            timeout=60 * _MINUTES,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LabError(f"{' '.join(command)} failed: {last}", "if apt has no lists yet: apt-get update") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)} did not end within {_MINUTES} minutes") from error
    return done.stdout


@dataclass(frozen=True, slots=True)
class _Fetcher:
    cache: Path
    say: Callable[[str], None]
    run: Run

    def kernel(self, series: str) -> Kernel:
        package = self._image_of(series)
        release = package.removeprefix("linux-image-")
        root = self.cache / "kernels" / series
        version = self._candidate(package)
        if _about(root) == {"release": release, "version": version}:
            self.say(f"Linux {series}: {release} ({version}) is here")
        else:
            self.say(f"Linux {series}: getting {release} ({version})")
            self._unpack([package], root, {"release": release, "version": version})
        return Kernel(series, release, version, root)

    def userland(self) -> None:
        python = self._depends(_PYTHON, r"python3\.\d+-minimal")
        if not python:
            raise LabError(f"apt knows no Python behind {_PYTHON}", "apt-get update")
        name = python[0].removesuffix("-minimal")
        packages = ["busybox-static", python[0], f"lib{name}-minimal", f"lib{name}-stdlib", *_LIBRARIES]
        versions = {package: self._candidate(package) for package in packages}
        root = self.cache / "guest"
        if _about(root) == versions:
            self.say(f"the guest's programs: {name} and busybox are here")
            return
        self.say(f"the guest's programs: getting {name} and busybox")
        self._unpack(packages, root, versions)

    def _image_of(self, series: str) -> str:
        for name in SERIES[series]:
            found = self._depends(name, rf"linux-image-{re.escape(series)}\.\d.*")
            if found:
                return found[0]
        raise LabError(
            f"apt has no kernel of the series {series} for clouds ({', '.join(SERIES[series])})",
            "run apt-get update; 6.1 is in Debian 12, 6.12 in its security updates and in Debian 13",
        )

    def _depends(self, package: str, pattern: str) -> list[str]:
        said = self.run(["apt-cache", "depends", package], Path("/"))
        names = re.findall(r"^\s*(?:Pre)?Depends: (\S+)$", said, re.MULTILINE)
        return [name for name in names if re.fullmatch(pattern, name)]

    def _candidate(self, package: str) -> str:
        match = re.search(r"^\s*Candidate: (\S+)$", self.run(["apt-cache", "policy", package], Path("/")), re.MULTILINE)
        if match is None or match[1] == "(none)":
            raise LabError(f"apt has no package {package}", "apt-get update")
        return match[1]

    def _unpack(self, packages: Sequence[str], root: Path, about: dict[str, str]) -> None:
        # Beside its place, and moved there when it is whole: who is interrupted leaves nothing half-done.
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=".fetch-") as name:
            work = Path(name)
            work.chmod(0o755)  # apt's own user may write here only as root, but must be able to look
            self.run(["apt-get", "download", "-q", *packages], work)
            whole = work / "whole"
            whole.mkdir()
            for file in sorted(work.glob("*.deb")):
                self.run(["dpkg-deb", "-x", str(file), str(whole)], work)
            (whole / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(root, ignore_errors=True)
            whole.rename(root)
