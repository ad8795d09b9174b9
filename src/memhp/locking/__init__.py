"""The locks: a mutex, the percpu rwsem, lockdep over both, and the switch point that all of them pass."""

from memhp.locking.guards import requires
from memhp.locking.lockdep import Lockdep, Report
from memhp.locking.mutex import Mutex, WaitQueue
from memhp.locking.percpu import PercpuRwSemaphore
from memhp.locking.switch import Mode, Op, Task, control, current

__all__ = ["Lockdep", "Mode", "Mutex", "Op", "PercpuRwSemaphore", "Report", "Task", "WaitQueue", "control", "current", "requires"]
