"""Who looks at the service while something is killed: a load on each VM's disk, and one on its network.

The loads are guest commands. What they record lies in memory of this process, so it outlives guests and machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from vmbus_emu.client.talk import GuestCommand, Talk
from vmbus_emu.witness import history
from vmbus_emu.witness.history import History, Operation

#: Where a load writes, in bytes from the beginning of a disk: little, so that every place is written often.
SPAN = 4 << 20
_DEPTH = 8
_DISK_S, _NETWORK_S = 0.001, 0.005
#: The same for a VM without integration services. A request to its disk is 26 register accesses, each one a way through
#: the hypervisor to the VM's worker and back: these devices are asked as much less as they are slower, and so that the
#: hypervisor has time for others.
EMULATED_SPAN = 512 << 10
_EMULATED_DISK_S, _EMULATED_NETWORK_S = 0.04, 0.01
#: All such disks together.
_EMULATED_MOST_PER_S = 50
#: All disk loads together plan at most so many requests per second: many VMs share a few cores.
_MOST_PER_S = 4000
#: Records per planned request: some are tried again, and a read that finds several things takes several records.
_RECORDS = 3
#: The status of a command whose VM died under it, or was dead.
VM_DIED = 137


class Target(NamedTuple):
    """What is observed of one VM."""

    vm: str
    disk: str           #: its name in the guest; empty: none
    span: int           #: bytes of it, from its beginning
    mix: str            #: what ``witness -o`` takes; ``read`` overwrites nothing
    neighbour: str      #: whom it sends echo requests; empty: nobody
    emulated: bool = False      #: whether its devices are


class Load:
    """A load of one VM. It can be begun again, in the VM's next life; the recorded histories follow each other."""

    def __init__(self, talk: Talk, vm: str, argv: list[str], target: str, interval_s: float, first: int) -> None:
        """``first``: the first sequence number that it may use."""
        self._talk = talk
        self._vm = vm
        self._argv = [*argv, "-i", f"{interval_s:.6f}"]
        self._target = target
        self._interval_s = interval_s
        self._first = first
        self._records: list[History] = []
        self._command: GuestCommand | None = None

    def begin(self, seconds: float) -> None:
        """Run for so long."""
        first = self._first
        if self._records:
            first = self._records[-1].first + len(self._records[-1])
        record = History.create(round(seconds / self._interval_s) * _RECORDS + 10_000, first)
        self._records.append(record)
        argv = [*self._argv, "-t", f"{seconds:.3f}", self._target, record.path]
        self._command = GuestCommand(self._talk, self._vm, argv)

    @property
    def running(self) -> bool:
        return self._command is not None and not self._command.ended

    @property
    def died(self) -> bool:
        """Whether its VM died under it, and it was not begun again since."""
        return self._command is not None and self._command.status == VM_DIED

    @property
    def died_once(self) -> bool:
        """Whether its VM died under it at any time."""
        return self.died or len(self._records) > 1

    def cancel(self) -> None:
        if self._command is not None:
            self._command.cancel()

    def dump(self) -> dict[str, Any]:
        """All of it as one history, for JSON."""
        dumps = [history.dump(record) for record in self._records or (History.create(0),)]
        operations = [operation for dump in dumps for operation in dump["operations"]]
        return {**dumps[0], "full": any(dump["full"] for dump in dumps), "operations": operations}

    @property
    def served(self) -> bool:
        """Whether a request has completed well in the VM's present life."""
        return any(one.acknowledged for one in self._latest())

    @property
    def unanswered(self) -> int:
        """Requests under way in the VM's present life."""
        return sum(bool(one.submitted_ns) and not one.completed_ns for one in self._latest())

    def _latest(self) -> Iterator[Operation]:
        return iter(self._records[-1]) if self._records else iter(())

    def close(self) -> None:
        for record in self._records:
            record.close()


def loads(talk: Talk, targets: Collection[Target], first: Mapping[str, int], seed: int) -> dict[str, dict[str, Load]]:
    """The loads of each VM, not begun yet: ``disk`` and ``network``, as far as it has them."""
    made: dict[str, dict[str, Load]] = {}
    for number, target in enumerate(targets):
        mine = made[target.vm] = {}
        disk_s, network_s = intervals(target, targets)
        if target.disk:
            argv = ["witness", "-o", target.mix, "-d", str(_DEPTH), "-s", str(target.span), "-S", str(seed + number)]
            mine["disk"] = Load(talk, target.vm, argv, target.disk, disk_s, first.get(target.vm, 1))
        if target.neighbour:
            mine["network"] = Load(talk, target.vm, ["netwitness"], target.neighbour, network_s, 1)
    return made


def intervals(target: Target, targets: Collection[Target]) -> tuple[float, float]:
    """Seconds between two requests: to the disk, on the network."""
    alike = sum(one.emulated is target.emulated for one in targets)
    if target.emulated:
        disk_s = max(_EMULATED_DISK_S, alike / _EMULATED_MOST_PER_S)
        return disk_s, max(_EMULATED_NETWORK_S, disk_s / 4)
    disk_s = max(_DISK_S, alike / _MOST_PER_S)
    return disk_s, max(_NETWORK_S, 5 * disk_s)
