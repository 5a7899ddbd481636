"""How late a load was with its requests: what makes its latencies look better than a client would find them.

An open loop is late behind its plan. A closed one has no plan, but it stalls when it does not use the room that a
completion made: what it does not ask for meanwhile, nobody measures.
"""

from __future__ import annotations

from array import array

#: A closed loop that takes longer from a completion to the next request stalls: it was doing, or waiting for, something
#: else than the device.
STALL_NS = 2_000_000


class Lateness:
    """Kept by a load; nothing is computed while it runs."""

    __slots__ = ("late_ns", "stalled_ns")

    def __init__(self) -> None:
        self.late_ns = array("q")   #: of each request of an open loop, behind its time
        self.stalled_ns = 0         #: of a closed loop, in all

    def stalled(self, gap_ns: int) -> None:
        """A closed loop submitted so long after a completion made room: more than :data:`STALL_NS`."""
        self.stalled_ns += gap_ns

    def report(self) -> dict[str, float | None]:
        late = sorted(self.late_ns)
        return {
            "late_p99_us": late[int(len(late) * 0.99)] / 1000 if late else None, "stalled_s": self.stalled_ns / 1e9,
        }  # fmt: skip
