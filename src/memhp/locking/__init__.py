"""The locks: a mutex, the percpu rwsem, lockdep over both, and the switch point that all of them pass."""

from memhp.locking.active import ActiveReference
from memhp.locking.guards import requires
from memhp.locking.lockdep import Lockdep
from memhp.locking.lockgraph import Cycle, Edge, LockGraph, Take
from memhp.locking.lockmap import LockMap
from memhp.locking.lockreport import Report
from memhp.locking.mutex import Mutex, WaitQueue
from memhp.locking.percpu import PercpuRwSemaphore
from memhp.locking.switch import Mode, Op, Task, control, current

__all__ = [
    "ActiveReference",
    "Cycle",
    "Edge",
    "LockGraph",
    "LockMap",
    "Lockdep",
    "Mode",
    "Mutex",
    "Op",
    "PercpuRwSemaphore",
    "Report",
    "Take",
    "Task",
    "WaitQueue",
    "control",
    "current",
    "requires",
]
