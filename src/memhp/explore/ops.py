"""What can happen at a step, and which two steps can't be swapped (the dependence relation).

Steps on different objects never depend on each other, but for what the start and the end of a thread order. Steps on one
object do as :data:`_PAIRS` says: *reversible* pairs can happen in either order, and the search must try both; *ordered*
pairs depend on each other, but the second was not possible before the first (a mutex can't be taken before it is given
back), so there is nothing to try.
"""

from __future__ import annotations

from memhp.locking.switch import Op

__all__ = [
    "ACQUIRE",
    "AWAIT",
    "CAN_WAIT",
    "CHOOSE",
    "DEPENDENT",
    "FAILED",
    "INDEPENDENT",
    "JOIN",
    "KINDS",
    "NAMES",
    "ORDERED",
    "READ",
    "RELATION",
    "REVERSIBLE",
    "SLEEP",
    "START",
    "TRY_FAIL",
    "TRY_OK",
    "WAKE",
    "WRITE",
    "letter_of",
]

NAMES = (
    "acquire",
    "release",
    "try, succeeded",
    "try, failed",
    "await free",
    "read acquire",
    "read release",
    "block new readers",
    "wait for readers",
    "write release",
    "try to read, succeeded",
    "try to read, failed",
    "read",
    "write",
    "look whether to wait",
    "wake up and look again",
    "wake",
    "start",
    "join",
    "choose",
)
(
    ACQUIRE,
    RELEASE,
    TRY_OK,
    TRY_FAIL,
    AWAIT,
    READ_ACQUIRE,
    READ_RELEASE,
    BLOCK,
    DRAIN,
    WRITE_RELEASE,
    TRY_READ_OK,
    TRY_READ_FAIL,
    READ,
    WRITE,
    WAIT,
    SLEEP,
    WAKE,
    START,
    JOIN,
    CHOOSE,
) = range(len(NAMES))

KINDS = {
    Op.ACQUIRE: ACQUIRE,
    Op.RELEASE: RELEASE,
    Op.TRY_ACQUIRE: TRY_OK,
    Op.AWAIT_FREE: AWAIT,
    Op.READ_ACQUIRE: READ_ACQUIRE,
    Op.READ_RELEASE: READ_RELEASE,
    Op.WRITE_BLOCK: BLOCK,
    Op.WRITE_DRAIN: DRAIN,
    Op.WRITE_RELEASE: WRITE_RELEASE,
    Op.TRY_READ: TRY_READ_OK,
    Op.READ: READ,
    Op.WRITE: WRITE,
    Op.SWAP: WRITE,
    Op.WAIT: WAIT,
    Op.SLEEP: SLEEP,
    Op.WAKE: WAKE,
    Op.START: START,
    Op.JOIN: JOIN,
}
"""The kind of an operation if it succeeds, which is also the one that depends on the most."""

CAN_WAIT = tuple(kind in {ACQUIRE, AWAIT, READ_ACQUIRE, BLOCK, DRAIN, SLEEP, JOIN} for kind in range(len(NAMES)))
"""Whether a step of a kind may have to wait until somebody else has acted."""

FAILED = {Op.TRY_ACQUIRE: TRY_FAIL, Op.TRY_READ: TRY_READ_FAIL, Op.SWAP: READ}
"""The kind of an operation that can fail, if it does."""

INDEPENDENT, ORDERED, REVERSIBLE = 0, 1, 2

# (first, second): what swapping them would mean. Pairs that are not listed are independent. The two steps of a writer of a
# percpu rwsem are apart because readers that are inside don't mind the first and readers that come don't mind the second.
_PAIRS = {
    # mutex
    (ACQUIRE, ACQUIRE): REVERSIBLE,
    (ACQUIRE, TRY_OK): REVERSIBLE,
    (ACQUIRE, TRY_FAIL): REVERSIBLE,
    (ACQUIRE, AWAIT): REVERSIBLE,
    (ACQUIRE, RELEASE): ORDERED,
    (TRY_OK, ACQUIRE): REVERSIBLE,
    (TRY_OK, TRY_OK): REVERSIBLE,
    (TRY_OK, TRY_FAIL): REVERSIBLE,
    (TRY_OK, AWAIT): REVERSIBLE,
    (TRY_OK, RELEASE): ORDERED,
    (TRY_FAIL, ACQUIRE): ORDERED,
    (TRY_FAIL, TRY_OK): ORDERED,
    (TRY_FAIL, RELEASE): REVERSIBLE,
    (AWAIT, ACQUIRE): REVERSIBLE,
    (AWAIT, TRY_OK): REVERSIBLE,
    (AWAIT, RELEASE): ORDERED,
    (RELEASE, ACQUIRE): ORDERED,
    (RELEASE, TRY_OK): REVERSIBLE,
    (RELEASE, TRY_FAIL): REVERSIBLE,
    (RELEASE, AWAIT): ORDERED,
    (RELEASE, RELEASE): ORDERED,
    # percpu rwsem
    (READ_ACQUIRE, BLOCK): REVERSIBLE,
    (READ_RELEASE, DRAIN): ORDERED,
    (BLOCK, READ_ACQUIRE): REVERSIBLE,
    (BLOCK, TRY_READ_OK): REVERSIBLE,
    (BLOCK, TRY_READ_FAIL): REVERSIBLE,
    (BLOCK, BLOCK): REVERSIBLE,
    (BLOCK, DRAIN): ORDERED,
    (BLOCK, WRITE_RELEASE): ORDERED,
    (DRAIN, BLOCK): ORDERED,
    (DRAIN, DRAIN): ORDERED,
    (WRITE_RELEASE, READ_ACQUIRE): ORDERED,
    (WRITE_RELEASE, TRY_READ_OK): REVERSIBLE,
    (WRITE_RELEASE, TRY_READ_FAIL): REVERSIBLE,
    (WRITE_RELEASE, BLOCK): ORDERED,
    (WRITE_RELEASE, DRAIN): ORDERED,
    (WRITE_RELEASE, WRITE_RELEASE): ORDERED,
    (TRY_READ_OK, BLOCK): REVERSIBLE,
    (TRY_READ_FAIL, BLOCK): ORDERED,
    (TRY_READ_FAIL, WRITE_RELEASE): REVERSIBLE,
    # shared variable; a swap that finds another value is a read
    (READ, WRITE): REVERSIBLE,
    (WRITE, READ): REVERSIBLE,
    (WRITE, WRITE): REVERSIBLE,
    # wait queue: look whether to wait, and look again when woken; the wake-up that ends a sleep is told apart where it counts
    (WAIT, WAKE): REVERSIBLE,
    (SLEEP, WAKE): REVERSIBLE,
    (WAKE, WAIT): REVERSIBLE,
    (WAKE, SLEEP): REVERSIBLE,
    (WAKE, WAKE): REVERSIBLE,
}

RELATION = tuple(tuple(_PAIRS.get((a, b), INDEPENDENT) for b in range(len(NAMES))) for a in range(len(NAMES)))
"""``RELATION[first][second]``."""

DEPENDENT = tuple(tuple(bool(RELATION[a][b] or RELATION[b][a]) for b in range(len(NAMES))) for a in range(len(NAMES)))
"""Whether two kinds on one object depend on each other, in whichever order."""

_LETTERS = "ARTFWLUBDXYNGSQZKEJC"


def letter_of(kind: int) -> str:
    """Give the letter that stands for a kind of step in schedule strings."""
    return _LETTERS[kind]
