"""Who adds memory and takes it away: small models of drivers, each on the machine's public core.

Each is made for a machine, and registers what it needs with it. What a driver would do in a worker or by a timer is an
explicit step here, so that a test decides when it happens.
"""

from memhp.kernel.drivers.balloon import HyperVBalloon, XenBalloon
from memhp.kernel.drivers.daxkmem import DaxKmem
from memhp.kernel.drivers.dlpar import Dlpar, Lmb
from memhp.kernel.drivers.sclp import SclpMemory
from memhp.kernel.drivers.virtiomem import VirtioMem

__all__ = ["DaxKmem", "Dlpar", "HyperVBalloon", "Lmb", "SclpMemory", "VirtioMem", "XenBalloon"]
