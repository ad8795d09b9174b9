"""Userland for real machines: what memory there is, through the files that Linux offers.

``Host()`` is this machine; ``Host(DirTree("/captured"))`` a copy of one; ``Host(machine.tree)`` a modelled one. Nothing here
knows which it is. Names are imported when they are used, so that ``memhp list`` starts fast.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memhp.host.block import Block
    from memhp.host.inventory import Host, Inventory, Policy

__all__ = ["Block", "Host", "Inventory", "Policy"]

_HOME = {"Block": "memhp.host.block", **dict.fromkeys(("Host", "Inventory", "Policy"), "memhp.host.inventory")}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - only where a name is used

    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
