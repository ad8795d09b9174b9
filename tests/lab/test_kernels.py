"""Fetching kernels, with an apt that is only played."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from memhp.errors import InvalidInput, LabError, LabMissing
from memhp.lab import kernels
from memhp.lab.kernels import cache_dir, fetch, installed, kernel_of, userland, userland_packages

RELEASE = "6.1.0-56-cloud-amd64"


class Apt:
    """Answers as apt-cache, apt-get and dpkg-deb do, for the packages that it has."""

    def __init__(self, version: str = "6.1.192-2", **depends: str) -> None:
        self.version = version
        self.depends = {"linux-image-cloud-amd64": f"linux-image-{RELEASE}", "python3-minimal": "python3.11-minimal", **depends}
        self.downloads: list[list[str]] = []

    def __call__(self, command: Sequence[str], directory: Path) -> str:
        match list(command):
            case ["apt-cache", "depends", package]:
                return f"{package}\n  PreDepends: {self.depends.get(package, 'nothing')}\n  Depends: dpkg\n"
            case ["apt-cache", "policy", package]:
                return f"{package}:\n  Installed: (none)\n  Candidate: {self.version if package[0] != '-' else '(none)'}\n"
            case ["apt-get", "download", "-q", *packages]:
                self.downloads.append(packages)
                for package in packages:
                    (directory / f"{package}_{self.version}_amd64.deb").touch()
            case ["dpkg-deb", "-x", deb, target]:
                name = Path(deb).name.partition("_")[0].removeprefix("linux-image-")
                (Path(target) / "boot").mkdir(exist_ok=True)
                (Path(target) / "boot" / f"vmlinuz-{name}").write_text(self.version)
            case other:
                raise AssertionError(other)
        return ""


def said(apt: Apt, cache: Path, *series: str) -> list[str]:
    lines: list[str] = []
    fetch(series, lines.append, cache, apt)
    return lines


def test_a_kernel_is_unpacked_into_the_cache(tmp_path: Path) -> None:
    """The package that the series' package depends on; nothing else is left there."""
    apt = Apt()
    assert said(apt, tmp_path, "6.1") == [
        "the guest's programs: getting python3.11 and busybox",
        f"Linux 6.1: getting {RELEASE} (6.1.192-2)",
    ]

    kernel = kernel_of("6.1", tmp_path)
    assert (kernel.release, kernel.version) == (RELEASE, "6.1.192-2")
    assert kernel.image.read_text() == "6.1.192-2"
    assert installed(tmp_path) == [kernel]
    assert apt.downloads[1] == [f"linux-image-{RELEASE}"]
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == ["6.1"]
    assert userland(tmp_path) == tmp_path / "guest"
    assert set(userland_packages(tmp_path)) == {
        *("busybox-static", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
        *("libc6", "libexpat1", "zlib1g", "bash", "util-linux", "libsmartcols1"),
    }


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    """Unless apt has another version by now, which takes its place."""
    said(Apt(), tmp_path, "6.1")
    apt = Apt()
    assert said(apt, tmp_path, "6.1") == [
        "the guest's programs: python3.11 and busybox are here",
        f"Linux 6.1: {RELEASE} (6.1.192-2) is here",
    ]
    assert apt.downloads == []
    said(Apt(version="6.1.200-1"), tmp_path, "6.1")
    assert [kernel.version for kernel in installed(tmp_path)] == ["6.1.200-1"]


def test_a_release_without_the_series_says_so(tmp_path: Path) -> None:
    """On another Debian the same name means another kernel, which is not taken for it."""
    apt = Apt(**{"linux-image-cloud-amd64": "linux-image-6.12.1-cloud-amd64"})
    with pytest.raises(LabError, match=r"no kernel of the series 6\.1 for clouds .*apt-get update"):
        said(apt, tmp_path, "6.1")
    assert said(apt, tmp_path, "6.12")[1] == "Linux 6.12: getting 6.12.1-cloud-amd64 (6.1.192-2)"


def test_a_fetch_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """A half of a kernel is never found."""
    said(Apt(), tmp_path, "6.1")
    newer = Apt(version="6.1.200-1")

    def broken(command: Sequence[str], directory: Path) -> str:
        if command[0] == "dpkg-deb" and "linux-image" in command[2]:
            raise LabError("no room")
        return newer(command, directory)

    with pytest.raises(LabError, match="no room"):
        fetch(["6.1"], lambda text: None, tmp_path, broken)
    assert [kernel.version for kernel in installed(tmp_path)] == ["6.1.192-2"]
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == ["6.1"]


def test_what_is_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel, the guest's programs, apt itself."""
    with pytest.raises(LabMissing, match=r"missing: Linux 6\.12; get it with: memhp lab fetch --kernel 6\.12"):
        kernel_of("6.12", tmp_path)
    with pytest.raises(LabMissing, match="memhp lab fetch"):
        userland(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabMissing, match=r"missing: apt-get, apt-cache, dpkg-deb; .*Debian") as missing:
        fetch(["6.1"], print, tmp_path)
    assert missing.value.missing == ("apt-get", "apt-cache", "dpkg-deb")


@pytest.mark.parametrize("ask", [lambda path: kernel_of("5.10", path), lambda path: fetch(["5.10"], print, path, Apt())])
def test_an_unknown_series_is_bad_input(tmp_path: Path, ask: object) -> None:
    """The message lists those that there are."""
    with pytest.raises(InvalidInput, match=r"--kernel: '5\.10' is not valid; expected 6\.1 or 6\.12"):
        ask(tmp_path)  # type: ignore[operator]


def test_what_a_command_says_last_is_the_reason(tmp_path: Path) -> None:
    """A command that fails is named, with its last line."""
    with pytest.raises(LabError, match=r"sh -c .* failed: second; if apt has no lists yet: apt-get update"):
        kernels._run(["sh", "-c", "echo first >&2; echo second >&2; exit 1"], tmp_path)


def test_modules_are_found_compressed_or_not(tmp_path: Path) -> None:
    """6.1 has them plain, 6.12 compressed."""
    said(Apt(), tmp_path, "6.1")
    kernel = kernel_of("6.1", tmp_path)
    directory = kernel.root / "lib/modules" / RELEASE / "kernel/lib"
    directory.mkdir(parents=True)
    (directory / "inject.ko.xz").touch()
    assert kernel.module("inject").name == "inject.ko.xz"
    with pytest.raises(LabError, match="has no module other"):
        kernel.module("other")


def test_the_cache_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_CACHE_HOME, else ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "memhp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_dir() == tmp_path / "me" / ".cache" / "memhp"
