"""Which kernels there are: Debian packages, downloaded and unpacked into a cache directory, never installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memhp.errors import InvalidInput, LabError, LabMissing

__all__ = [
    "SERIES",
    "Kernel",
    "cache_dir",
    "fetch",
    "find_kernel",
    "installed",
    "kernel_at",
    "kernel_of",
    "selftest_script",
    "userland",
    "userland_packages",
]

Run = Callable[[Sequence[str], Path], str]

SERIES = {
    "6.1": ("linux-image-cloud-amd64",),
    "6.12": ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"),
}
"""Packages that depend on the newest kernel of a series; which of them do depends on the Debian release."""

_PYTHON = "python3-minimal"
_LIBRARIES = ("libc6", "libexpat1", "zlib1g")
_OF_THE_LIBRARY = r"lib(bz2-1\.0|crypt1|ffi\d+|lzma5|ncursesw6|readline\d+(t64)?|tinfo6|uuid1)"
"""What the extension modules of Python's whole library need; databases and the like are left out."""
_SHELL = ("bash", "util-linux", "libsmartcols1")
"""What a shell in a guest has besides busybox: bash, lsmem and chmem."""
_SCRIPT = "mem-on-off-test.sh"
_SOURCES = "linux-source-6.1"
"""Where the kernel's own selftest is; it is the same in 6.12, whose package is larger."""
_ABOUT = "about.json"
_MINUTES = 15
_HEADER_END = 0x200 + (1 << 16) + 200
"""As far as the header of an image can point, and a line from there."""


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
    """Where the package is unpacked; of a kernel by path, the file itself."""
    modules: Path | None = None
    """Where the modules of a kernel by path are."""

    @property
    def image(self) -> Path:
        """The kernel itself."""
        return self.root if self.root.is_file() else self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def module_dir(self) -> Path:
        """The directory with all its modules; it may be absent."""
        return self.modules or self.root / "lib" / "modules" / self.release

    def has_built_in(self, name: str) -> bool:
        """Tell whether it has built in what is a module elsewhere."""
        try:
            listed = (self.module_dir / "modules.builtin").read_text(encoding="utf-8")
        except OSError:
            return False
        return _file_pattern(name, r"$").search(listed) is not None

    def module(self, name: str) -> Path:
        """Give the file of a module, compressed or not; ``-`` and ``_`` are the same in its name.

        Raises:
            LabError: it does not have it.
        """
        pattern = _file_pattern(name, r"(\.\w+)?$")
        found = sorted(path for path in self.module_dir.rglob("*.ko*") if pattern.search(path.as_posix()))
        if not found:
            raise LabError(f"the kernel {self.release} has no module {name} in {self.module_dir}")
        return found[0]


def _file_pattern(name: str, end: str) -> re.Pattern[str]:
    return re.compile(f"(^|/){re.sub('[-_]', '[-_]', name)}\\.ko{end}", re.MULTILINE)


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


def find_kernel(word: str, cache: Path | None = None) -> Kernel:
    """Give the kernel that ``--kernel`` means: a series that was fetched, or ``VMLINUZ[:MODULES_DIR]``, a path with a slash.

    Raises:
        InvalidInput: it is neither, or no kernel is there.
        LabMissing: the series was not fetched.
    """
    if "/" not in word:
        if word not in SERIES:
            raise InvalidInput(word, "--kernel", f"{' or '.join(SERIES)}, or VMLINUZ[:MODULES_DIR], a path with a slash")
        return kernel_of(word, cache)
    image, _, modules = word.partition(":")
    return kernel_at(Path(image), Path(modules) if modules else None)


def kernel_at(image: Path, modules: Path | None = None) -> Kernel:
    """Give the kernel in a file; what it is stands in its header (Documentation/arch/x86/boot.rst: ``kernel_version``).

    Args:
        image: a bzImage, as vmlinuz is.
        modules: where its modules are; ``/lib/modules/RELEASE`` if not given.

    Raises:
        InvalidInput: the file is none, or can't be read, or there are no such modules.
    """
    try:
        header = image.read_bytes()[:_HEADER_END]
    except OSError as error:
        raise InvalidInput(str(image), "--kernel", f"a kernel that can be read ({error.strerror})") from error
    if header[0x202:0x206] != b"HdrS":
        raise InvalidInput(str(image), "--kernel", "a bzImage, as vmlinuz is (it has no HdrS at 0x202)")
    start = int.from_bytes(header[0x20E:0x210], "little") + 0x200
    said = header[start:].partition(b"\0")[0].decode(errors="replace")
    release = said.partition(" ")[0]
    series = re.match(r"\d+\.\d+", release)
    if series is None:
        raise InvalidInput(str(image), "--kernel", f"a kernel that says its release (its header has {said[:40]!r})")
    if modules is not None and not (modules / "kernel").is_dir():
        raise InvalidInput(str(modules), "--kernel", f"the modules of {release}: a directory with kernel/ in it")
    debian = re.search(r" Debian (\S+) ", said)
    return Kernel(series[0], release, debian[1] if debian else release, image, modules or Path("/lib/modules") / release)


def selftest_script(cache: Path | None = None) -> Path:
    """Give the kernel's own selftest of memory hotplug, as it was fetched.

    Raises:
        LabMissing: it was not.
    """
    path = (cache or cache_dir()) / "selftest" / _SCRIPT
    if not path.is_file():
        raise LabMissing([f"the kernel's selftest {_SCRIPT}"], "get it with: memhp lab fetch --selftest")
    return path


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


def fetch(
    series: Sequence[str],
    say: Callable[[str], None],
    cache: Path | None = None,
    run: Run | None = None,
    *,
    selftest: bool = False,
) -> list[Kernel]:
    """Download and unpack the kernels and the guest's programs; what is there in the newest version stays.

    Args:
        series: which kernels.
        say: hears what is done.
        cache: where to; :func:`cache_dir` if not given.
        run: runs a command in a directory and gives what it prints.
        selftest: also the kernel's own selftest, from a package of 130 MB of which one file stays.

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
    if selftest:
        fetcher.selftest()
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
        packages += [*self._depends(f"lib{name}-stdlib", _OF_THE_LIBRARY), *_SHELL]
        versions = {package: self._candidate(package) for package in packages}
        root = self.cache / "guest"
        if _about(root) == versions:
            self.say(f"the guest's programs: {name} and busybox are here")
            return
        self.say(f"the guest's programs: getting {name} and busybox")
        self._unpack(packages, root, versions)

    def selftest(self) -> None:
        version = self._candidate(_SOURCES)
        root = self.cache / "selftest"
        if _about(root) == {_SOURCES: version}:
            self.say(f"the kernel's selftest: {_SCRIPT} ({version}) is here")
            return
        self.say(f"the kernel's selftest: getting {_SCRIPT} out of {_SOURCES} ({version}), which takes a minute")
        with self._beside(root) as (work, whole):
            self.run(["apt-get", "download", "-q", _SOURCES], work)
            (package,) = work.glob("*.deb")
            self.run(["dpkg-deb", "-x", str(package), str(work)], work)
            package.unlink()
            (archive,) = work.glob("usr/src/*.tar.xz")
            member = f"{_SOURCES}/tools/testing/selftests/memory-hotplug/{_SCRIPT}"
            self.run(["tar", "-xf", str(archive), "-C", str(whole), "--occurrence=1", "--strip-components=5", member], work)
            (whole / _ABOUT).write_text(json.dumps({_SOURCES: version}) + "\n", encoding="utf-8")

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
        with self._beside(root) as (work, whole):
            self.run(["apt-get", "download", "-q", *packages], work)
            for file in sorted(work.glob("*.deb")):
                self.run(["dpkg-deb", "-x", str(file), str(whole)], work)
            (whole / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def _beside(self, root: Path) -> Iterator[tuple[Path, Path]]:
        # Made beside its place, and moved there when it is whole: who is interrupted leaves nothing half-done.
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=".fetch-") as name:
            work = Path(name)
            work.chmod(0o755)  # apt's own user may write here only as root, but must be able to look
            whole = work / "whole"
            whole.mkdir()
            yield work, whole
            if root.exists():
                root.rename(work / "old")  # two renames: who boots at this moment hardly ever finds nothing
            whole.rename(root)
