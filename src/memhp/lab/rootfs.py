"""What is in a guest that people and programs work in: a shell, Python with its library, memhp, and what they add.

The archive is made of parts, one after the other, as the kernel takes them; a part that is the same as before comes from
the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import memhp
from memhp.abi import state
from memhp.errors import InvalidInput, LabError
from memhp.lab import agent
from memhp.lab.cpio import Entry, device, directory, file, link, newc
from memhp.lab.image import INJECTORS
from memhp.lab.kernels import Kernel, cache_dir
from memhp.lab.modules import module_tree

__all__ = ["Addition", "read_addition", "shell_root"]

Addition = tuple[Path, str]
"""A file or directory of this machine, and its path in the guest."""

_LIB = "usr/lib"
_LOADER = "ld-linux-x86-64.so.2"
_LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libbz2.so.1.0", "liblzma.so.5", "libcrypt.so.1", "libuuid.so.1"),
    *("libffi.so.*", "libtinfo.so.6", "libncursesw.so.6", "libpanelw.so.6", "libreadline.so.*", "libsmartcols.so.1"),
)
_PROGRAMS = ("**/*bin/lsmem", "**/*bin/chmem")
_NOT_IN_A_GUEST = {"idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter", "turtledemo", "test", "tests", "__pycache__"}
_NEEDS_OTHERS = {"_sqlite3", "_dbm", "_ssl", "_hashlib", "nis", "_tkinter", "_gdbm"}
_KEPT = 4
"""Archives of each kind in the cache."""

_INIT = """#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM={terminal}
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
hostname memhp
cd /root
{modules}
"""
_AGENT = "/usr/bin/python3 -S -B /usr/lib/memhp-agent/agent.py"
_SHELL = f"""{_AGENT} </dev/null >/dev/console 2>&1 &
setsid -c /bin/bash -l </dev/ttyS0 >/dev/ttyS0 2>&1
poweroff -f
"""
_NO_SHELL = f"{_AGENT}\npoweroff -f\n"
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost memhp\n",
    "root/.profile": "PS1='memhp:\\w# '\nalias ll='ls -l'\n",
}
_COMMAND = "#!/usr/bin/python3\nimport sys\n\nfrom memhp.cli import main\n\nsys.exit(main())\n"
_PACKAGES = "usr/lib/python3/dist-packages"


def read_addition(text: str) -> Addition:
    """Read ``LOCAL[:PATH]``: what to put into the guest, and where; ``/root`` and its own name if not given.

    Raises:
        InvalidInput: there is no such file, or the path in the guest is not absolute.
    """
    local, _, path = text.partition(":")
    source = Path(local)
    if not source.exists():
        raise InvalidInput(local, "--add", "a file or directory that is there")
    if path and not path.startswith("/"):
        raise InvalidInput(path, "--add", "an absolute path in the guest, as in ./trace.py:/root/trace.py")
    return source, path or f"/root/{source.resolve().name}"


def shell_root(
    userland: Path,
    kernel: Kernel,
    *,
    shell: bool = False,
    drivers: Sequence[str] = (),
    modules: Sequence[str] = (),
    additions: Iterable[Addition] = (),
    terminal: str = "linux",
) -> bytes:
    """Make the archive.

    Args:
        userland: where the guest's programs were unpacked.
        kernel: whose modules go in.
        shell: whether a shell runs on the console, whose end is the guest's end.
        drivers: of the kernel's modules, loaded at boot in this order.
        modules: more of the kernel's modules, for ``modprobe`` in the guest.
        additions: files and directories of this machine.
        terminal: what ``TERM`` says to the shell.

    Raises:
        LabError: something is missing in what was fetched, or the kernel has no such module.
    """
    wanted = [name for name in INJECTORS if not kernel.modules or kernel.modules.is_dir()]
    loaded = [name for name in drivers if not kernel.has_built_in(name)]
    start = "\n".join(f"modprobe {name}" for name in loaded) + "\n"
    init = _INIT.format(terminal=terminal, modules=start) + (_SHELL if shell else _NO_SHELL)
    own = [
        *module_tree(kernel, [*wanted, *loaded, *modules], _LIB),
        file("init", init.encode(), 0o755),
        *_agent(f"{_LIB}/memhp-agent"),
    ]
    for source, path in additions:
        own += _added(source, path)
    return _base(userland) + _packages(userland) + newc(own)


# -- the parts


def _agent(place: str) -> Iterator[Entry]:
    # With the little that it needs beside it, so that it starts without the rest of memhp.
    yield from (directory(name) for name in (place, f"{place}/memhp", f"{place}/memhp/abi"))
    yield file(f"{place}/agent.py", Path(agent.__file__).read_bytes())
    yield file(f"{place}/memhp/abi/state.py", Path(state.__file__).read_bytes())


def _base(userland: Path) -> bytes:
    key = [Path(__file__).read_bytes(), (userland / "about.json").read_bytes()]
    return _cached("base", key, lambda: newc(_frame(userland)))


def _frame(userland: Path) -> Iterator[Entry]:
    names = ("usr", "usr/bin", "usr/sbin", _LIB, "usr/lib64", "usr/local", "usr/local/bin", "usr/local/sbin", "etc", "root")
    yield from (directory(name) for name in (*names, "dev", "proc", "sys", "run", "tmp", "var", f"{_LIB}/python3", _PACKAGES))
    yield from (link(name, f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64"))
    yield device("dev/console", 5, 1)
    yield from (file(name, text.encode()) for name, text in _FILES.items())
    yield file("usr/bin/busybox", find(userland, "**/bin/busybox").read_bytes(), 0o755)
    yield file("usr/bin/bash", find(userland, "**/bin/bash").read_bytes(), 0o755)
    yield link("usr/bin/sh", "busybox")
    for pattern in _PROGRAMS:
        path = find(userland, pattern)
        yield file(f"usr/bin/{path.name}", path.read_bytes(), 0o755)
    yield file(f"usr/lib64/{_LOADER}", find(userland, f"**/{_LOADER}").read_bytes(), 0o755)
    for pattern in _LIBRARIES:
        name, path = _library(userland, pattern)
        yield file(f"{_LIB}/{name}", path.read_bytes(), 0o755)
    yield from _python(userland)


def _python(userland: Path) -> Iterator[Entry]:
    binary = find(userland, "usr/bin/python3.*")
    yield file(f"usr/bin/{binary.name}", binary.read_bytes(), 0o755)
    yield link("usr/bin/python3", binary.name)
    yield link("usr/bin/python", binary.name)
    yield from _compiled_tree(userland, userland / _LIB / binary.name, f"{_LIB}/{binary.name}")


def _packages(userland: Path) -> bytes:
    # memhp itself and what it needs. PyYAML's C part is of this machine's Python, and memhp does without it.
    found = importlib.util.find_spec("yaml")
    if found is None or found.origin is None:
        raise LabError("PyYAML, which memhp needs in the guest as here, can't be found")
    roots = {"memhp": Path(memhp.__file__).parent, "yaml": Path(found.origin).parent}
    trees = {name: sorted(path for path in _sources(root) if path.suffix != ".so") for name, root in roots.items()}
    version = memhp.__version__
    key = [Path(__file__).read_bytes(), (userland / "about.json").read_bytes(), version.encode()]
    key += [part for paths in trees.values() for path in paths for part in (str(path).encode(), path.read_bytes())]

    def make() -> bytes:
        about = f"{_PACKAGES}/memhp-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: memhp\nVersion: {version}\n"
        parts = [file("usr/bin/memhp", _COMMAND.encode(), 0o755), directory(about), file(f"{about}/METADATA", metadata.encode())]
        for name, root in roots.items():
            parts += _compiled_tree(userland, root, f"{_PACKAGES}/{name}", keep=lambda path: path.suffix != ".so")
        return newc(parts)

    return _cached("packages", key, make)


def _sources(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.name in _NOT_IN_A_GUEST or path.name.partition(".")[0] in _NEEDS_OTHERS:
            continue
        if path.is_dir():
            yield from _sources(path)
        elif path.is_file():
            yield path


def _compiled_tree(userland: Path, root: Path, name: str, keep: Callable[[Path], bool] = lambda path: True) -> Iterator[Entry]:
    # Compiled here, because an emulated processor takes ten times as long for it, in each guest anew.
    with tempfile.TemporaryDirectory(prefix="memhp-image-") as work:
        copy = Path(work) / "tree"
        for path in filter(keep, _sources(root)):
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _compile(userland, copy, f"/{name}")
        yield directory(name)
        for path in sorted(copy.rglob("*")):
            inside = f"{name}/{path.relative_to(copy)}"
            yield (
                directory(inside) if path.is_dir() else file(inside, path.read_bytes(), 0o755 if path.suffix == ".so" else 0o644)
            )


def _compile(userland: Path, tree: Path, name: str) -> None:
    # With the guest's own Python. Where it can't run (another architecture), the guest compiles what it imports.
    loader, binary = find(userland, f"**/{_LOADER}"), find(userland, "usr/bin/python3.*")
    libraries = sorted({str(path.parent) for path in userland.rglob("lib*.so.*")})
    command = [str(loader), "--library-path", ":".join(libraries), str(binary), "-I", "-S", "-B", "-m", "compileall", "-q"]
    options = ["--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", name, str(tree)]
    try:
        subprocess.run([*command, *options], capture_output=True, check=False)  # noqa: S603 - the guest's Python
    except OSError:
        return


def _added(source: Path, path: str) -> Iterator[Entry]:
    parts = path.strip("/").split("/")
    yield from (directory("/".join(parts[:depth])) for depth in range(1, len(parts)))
    yield from _tree(source, "/".join(parts))


def _tree(source: Path, name: str) -> Iterator[Entry]:
    if not source.is_dir():
        yield file(name, source.read_bytes(), 0o755 if os.access(source, os.X_OK) else 0o644)
        return
    yield directory(name)
    for path in sorted(source.iterdir()):
        if path.name != "__pycache__" and (path.is_dir() or path.is_file()):
            yield from _tree(path, f"{name}/{path.name}")


# -- finding and keeping


def find(root: Path, pattern: str) -> Path:
    """Give the file behind the first path that fits.

    Raises:
        LabError: there is none.
    """
    for path in sorted(root.glob(pattern)):
        real = Path(os.path.realpath(path))
        if real.is_file() and not path.name.endswith("-config"):
            return real
    raise LabError(f"{root} has no {pattern}", "fetch it again: memhp lab fetch")


def _library(userland: Path, pattern: str) -> tuple[str, Path]:
    # By the name that the loader asks for, libffi.so.8, not that of the file behind it.
    named = sorted((path for path in userland.rglob(pattern) if path.exists()), key=lambda path: len(path.name))
    if not named:
        raise LabError(f"{userland} has no {pattern}", "fetch it again: memhp lab fetch")
    return named[0].name, Path(os.path.realpath(named[0]))


def _cached(kind: str, key: Sequence[bytes], make: Callable[[], bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in key:
        digest.update(len(part).to_bytes(8, "little") + part)
    directory = cache_dir() / "images"
    place = directory / f"{kind}-{digest.hexdigest()[:32]}.cpio"
    try:
        data = place.read_bytes()
        os.utime(place)
    except FileNotFoundError:
        data = make()
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as new:
            new.write(data)
        os.replace(new.name, place)
        for old in sorted(directory.glob(f"{kind}-*.cpio"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return data
