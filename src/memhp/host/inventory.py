"""What memory a machine has, block by block, as its files say (drivers/base/memory.c, drivers/base/node.c).

Nothing is guessed: what a file doesn't say is None. A tree may change while it is read; a block that goes away in between
is left out.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar, Unpack, overload

from memhp.abi.formats import parse_hex
from memhp.abi.paths import FIRMWARE_MEMORY, MEMORY, NODE, PARAMETERS
from memhp.abi.tree import DirTree, Tree, open_directory
from memhp.errors import HostError, InvalidInput, NoMemoryBlocks
from memhp.host.block import NOT_READ, Block, read_flag, read_words
from memhp.units import BlockId

if TYPE_CHECKING:
    from memhp.abi.directory import Directory
    from memhp.abi.uevent import UeventSource
    from memhp.host.change import Outcome, Transaction, Wishes
    from memhp.host.explain import Explanation
    from memhp.host.plan import Plan
    from memhp.host.watch import Watch
    from memhp.notifier import Callback, NotifierBlock, NotifierChain

__all__ = ["Host", "Inventory", "Policy"]

T = TypeVar("T")

KERNEL_OPTIONS = "the kernel needs CONFIG_MEMORY_HOTPLUG (and CONFIG_SPARSEMEM below it), and /sys must be mounted"


class Policy(NamedTuple):
    """What the kernel does with new memory, as its files say; None where it has no such file.

    Attributes:
        auto_online_blocks: offline, online, online_kernel or online_movable.
        online_policy: contig-zones or auto-movable.
        auto_movable_ratio: percent of MOVABLE to kernel memory.
        auto_movable_numa_aware: whether the ratio holds within each node too.
        memmap_on_memory: N, Y or force.
    """

    auto_online_blocks: str | None = None
    online_policy: str | None = None
    auto_movable_ratio: int | None = None
    auto_movable_numa_aware: bool | None = None
    memmap_on_memory: str | None = None


class Inventory(NamedTuple):
    """A machine's memory at one moment.

    Attributes:
        block_size: bytes of each block.
        blocks: ascending.
        nodes: the nodes that are online, ascending, with memory or not; () without NUMA.
        policy: what happens with new memory.
        deconfigured: s390: blocks that the firmware could give and that don't exist now.
    """

    block_size: int
    blocks: tuple[Block, ...]
    nodes: tuple[int, ...]
    policy: Policy
    deconfigured: tuple[BlockId, ...] = ()

    def block(self, number: int) -> Block:
        """Give the block with that id.

        Raises:
            InvalidInput: there is none.
        """
        for block in self.blocks:
            if block.id == number:
                return block
        raise InvalidInput(f"memory{number}", MEMORY, "a block that exists")

    @property
    def online_bytes(self) -> int:
        """How much is online."""
        return self.block_size * sum(block.online for block in self.blocks)


class Host:
    """A machine, through its files: this one if no tree is given. It is never written to here.

    Raises (from every method):
        NoMemoryBlocks: the machine has none; the error says which kernel options are needed.
        HostError: a directory can't be read, or a file makes no sense.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self.tree: Tree = DirTree("/") if tree is None else tree
        self._chain: NotifierChain | None = None

    def __repr__(self) -> str:
        return f"<Host {self.tree!r}>"

    @property
    def block_size(self) -> int:
        """The bytes of a memory block."""
        return self._block_size()

    def blocks(self, *, zones: bool = False) -> tuple[Block, ...]:
        """Give all blocks, ascending; one that goes away meanwhile is left out.

        Args:
            zones: whether to read valid_zones too, right after each state, rather than when somebody asks for them.
        """
        size = self._block_size()
        with self._memory() as directory:
            numbers = sorted([int(name[6:]) for name in directory.names() if _is_block(name)])
            if not numbers:
                raise NoMemoryBlocks(MEMORY, "no memory blocks", hint=KERNEL_OPTIONS)
            owners = self._owners(directory, numbers)
            files = ("state", "valid_zones") if zones else ("state",)
            texts = directory.read_all([f"memory{number}/{file}" for number in numbers for file in files])
            here = set(directory.names()) if None in texts else None  # what can't be read may be gone
        found = []
        for index, number in enumerate(numbers):
            state = texts[index * len(files)]
            if state is None and here is not None and f"memory{number}" not in here:
                continue
            words = read_words(texts[2 * index + 1]) if zones else NOT_READ
            found.append(Block(BlockId(number), size, owners.get(number, ()), (state or "").strip(), words, self._late))
        return tuple(found)

    def nodes(self) -> tuple[int, ...]:
        """Give the nodes that are online, ascending; () if the kernel has no NUMA or the copy has no such files."""
        names = self._list(NODE) or []
        return tuple(sorted(int(name[4:]) for name in names if name[:4] == "node" and _digits(name[4:])))

    def policy(self) -> Policy:
        """Give what the kernel does with new memory."""
        aware = self._text(f"{PARAMETERS}/auto_movable_numa_aware")
        ratio = self._text(f"{PARAMETERS}/auto_movable_ratio")
        return Policy(
            auto_online_blocks=self._text(f"{MEMORY}/auto_online_blocks"),
            online_policy=self._text(f"{PARAMETERS}/online_policy"),
            auto_movable_ratio=int(ratio) if ratio is not None and _digits(ratio) else None,
            auto_movable_numa_aware=read_flag(aware),
            memmap_on_memory=self._text(f"{PARAMETERS}/memmap_on_memory"),
        )

    def inventory(self) -> Inventory:
        """Give everything at once."""
        blocks = self.blocks(zones=True)
        here = {block.id for block in blocks}
        known = (int(name[6:]) for name in self._list(FIRMWARE_MEMORY) or () if _is_block(name))
        return Inventory(
            block_size=blocks[0].size if blocks else self._block_size(),
            blocks=blocks,
            nodes=self.nodes(),
            policy=self.policy(),
            deconfigured=tuple(sorted(BlockId(number) for number in known if number not in here)),
        )

    def explain(self, blocks: Iterable[int] | None = None) -> list[Explanation]:
        """Say of each block, or of each of all, whether it will go offline, and why not; see :mod:`memhp.host.explain`."""
        from memhp.host.explain import explain  # noqa: PLC0415 - a listing needs none of it
        from memhp.host.survey import Survey  # noqa: PLC0415

        return explain(Survey.take(self), blocks)

    def plan(
        self,
        operation: str,
        goal: str,
        *,
        zone: str | None = None,
        node: int | None = None,
        keep_free: int | None = None,
    ) -> Plan:
        """Plan to take memory ``offline`` or bring it ``online``: the cheapest blocks; see :func:`memhp.host.plan.make_plan`."""
        from memhp.host.goal import Operation  # noqa: PLC0415
        from memhp.host.plan import make_plan  # noqa: PLC0415
        from memhp.host.survey import Survey  # noqa: PLC0415

        return make_plan(Survey.take(self), Operation(operation), goal, zone=zone, node=node, keep_free=keep_free)

    def apply(self, plan: Plan, **wishes: Unpack[Wishes]) -> Outcome:
        """Carry a plan out as one transaction: all of it, or nothing; see :mod:`memhp.host.change`.

        The tree must be one that can be written: ``Host(DirTree("/", writable=True))``. Who takes part says so before with
        :meth:`hotplug_memory_notifier`.

        Args:
            plan: from :meth:`plan`.
            **wishes: ``timeout``: seconds for each block; without it a change waits as long as the kernel tries, which may be for
                ever. ``partial``: keep what could be done if not all of it can be. ``hooks``: programs that take part, too.
                ``journal``: the directory to note it in, so that the next run can account for one that was killed.
                ``progress``: hears what happens.

        Raises:
            ChangeFailed: the goal isn't reached; ``outcome`` says exactly what holds.
            HostError: a copy, or files that can't be read.
        """
        return self.transaction(plan, **wishes).run()

    def transaction(self, plan: Plan, **wishes: Unpack[Wishes]) -> Transaction:
        """Prepare what :meth:`apply` does; its ``outcome`` is there also after Ctrl-C."""
        from memhp.host.change import Transaction  # noqa: PLC0415

        return Transaction(
            self.tree,
            plan,
            chain=lambda: self.memory_chain if wishes.get("hooks") else self._chain,
            timeout=wishes.get("timeout"),
            partial=wishes.get("partial", False),
            hooks=wishes.get("hooks", ()),
            journal=wishes.get("journal"),
            progress=wishes.get("progress"),
            explain=lambda number: self.explain([number])[0].sentence,
        )

    @property
    def memory_chain(self) -> NotifierChain:
        """The chain of those who take part in changes that are made through this object."""
        from memhp.notifier import NotifierChain  # noqa: PLC0415

        if self._chain is None:
            self._chain = NotifierChain("memory_chain of userland")
        return self._chain

    @overload
    def hotplug_memory_notifier(self, callback: Callback, priority: int = 0) -> NotifierBlock: ...

    @overload
    def hotplug_memory_notifier(self, callback: None = None, priority: int = 0) -> Callable[[Callback], NotifierBlock]: ...

    def hotplug_memory_notifier(
        self, callback: Callback | None = None, priority: int = 0
    ) -> NotifierBlock | Callable[[Callback], NotifierBlock]:
        """Register a callback for changes made through this object, as the kernel's function of that name does; or decorate one.

        It is called with MEM_GOING_* before anything is written, and may refuse; then with what came of it. The kernel's own
        callbacks don't hear of it, nor does this one of changes that others make.
        """
        from memhp.notifier import NotifierBlock  # noqa: PLC0415

        if callback is None:
            return lambda function: self.memory_chain.register(NotifierBlock(function, priority), unique_callback=True)
        return self.memory_chain.register(NotifierBlock(callback, priority), unique_callback=True)

    def watch(self, source: UeventSource | None = None, *, trace: bool = False, every: bool = False) -> Watch:
        """Give a watcher of what happens to the memory; see :class:`memhp.host.watch.Watch`.

        Args:
            source: the machine's uevents, of a model ``machine.uevents``; those of this machine's kernel if not given.
            trace: hear the calls of this machine's notifier chain too; needs root.
            every: uevents of devices that are no memory too.
        """
        from memhp.host.watch import Watch  # noqa: PLC0415 - a listing needs none of it

        if not trace:
            return Watch(self, source, every=every)
        from memhp.host.trace import ChainTracer  # noqa: PLC0415 - likewise

        tracer = ChainTracer()
        try:
            return Watch(self, source, tracer=tracer, every=every)
        except BaseException:
            tracer.close()
            raise

    def _block_size(self) -> int:
        path = f"{MEMORY}/block_size_bytes"
        try:
            text = self.tree.read(path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise NoMemoryBlocks(MEMORY, "not there", errno=errno.ENOENT, hint=KERNEL_OPTIONS) from error
            raise HostError(path, f"can't be read: {error.strerror}", errno=error.errno or 0) from error
        size = parse_hex(text, path)
        if size <= 0 or size & (size - 1):
            raise InvalidInput(text.strip(), path, "a power of two, in hexadecimal")
        return size

    @contextlib.contextmanager
    def _memory(self) -> Iterator[Directory]:
        try:
            directory = open_directory(self.tree, MEMORY)
        except OSError as error:
            raise HostError(MEMORY, f"can't be read: {error.strerror}", errno=error.errno or 0) from error
        try:
            yield directory
        finally:
            directory.close()

    def _owners(self, directory: Directory, numbers: list[int]) -> dict[int, tuple[int, ...]]:
        # The links in the nodes' directories say the same as those in the blocks', in 2 calls a node instead of 4 a block. A
        # copy may lack them, so the blocks at both ends are asked, and if they say otherwise, all blocks.
        owners: dict[int, tuple[int, ...]] = {}
        for node in self.nodes():
            for name in self._list(f"{NODE}/node{node}") or ():
                if _is_block(name):
                    number = int(name[6:])
                    owners[number] = (*owners.get(number, ()), node)
        if all(_nodes_of(directory, number) == owners.get(number, ()) for number in {numbers[0], numbers[-1]}):
            return owners
        return {number: _nodes_of(directory, number) for number in numbers}

    def _list(self, path: str) -> list[str] | None:
        try:
            return self.tree.list(path)
        except OSError:
            return None

    def _late(self, name: str) -> str | None:
        return self._text(f"{MEMORY}/{name}")

    def _text(self, path: str) -> str | None:
        text = _or_none(self.tree.read, path)
        return None if text is None else text.strip()


def _is_block(name: str) -> bool:
    return name[:6] == "memory" and _digits(name[6:])


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _or_none(read: Callable[[str], str], name: str) -> str | None:
    try:
        return read(name)
    except OSError:
        return None


def _nodes_of(directory: Directory, number: int) -> tuple[int, ...]:
    try:
        names = directory.names(f"memory{number}")
    except OSError:
        return ()
    return tuple(sorted(int(name[4:]) for name in names if name[:4] == "node" and _digits(name[4:])))
