"""One SCSI command that takes several driver requests, one after the other, and ends once.

Used by a VSP session for UNMAP (a request per range) and for a write with FUA (the write, then a flush).
At most one request of a chain is with the driver at a time, so a chain counts as one outstanding command.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from vmbus_emu.device import BlockDevice, BlockRequest, Memory, Op, Status

Step = tuple[Op, int, int, Memory | None]   # op, lba, blocks, buffer


class RequestChain:
    """Runs ``steps`` until one fails or none is left, then calls ``on_done(status)``, once.

    ``wanted`` is asked before each step; a chain nobody wants any more ends with GONE.
    """

    def __init__(
        self, disk: BlockDevice, steps: Iterable[Step], wanted: Callable[[], bool], on_done: Callable[[Status], Any]
    ) -> None:
        self._disk = disk
        self._steps = deque(steps)
        self._wanted = wanted
        self._on_done = on_done
        self._submitting = False

    def run(self) -> None:
        """Go on until the driver keeps a request. Thousands of steps may complete inside submit: no recursion."""
        while self._steps:
            if not self._wanted():
                self._on_done(Status.GONE)
                return
            request = BlockRequest(*self._steps.popleft(), self._stepped)
            self._submitting = True
            self._disk.submit(request)
            self._submitting = False
            if request.status is None:
                return
            if request.status is not Status.OK:
                self._on_done(request.status)
                return
        self._on_done(Status.OK)

    def _stepped(self, request: BlockRequest) -> None:
        if self._submitting:
            return  # run() looks at the status itself
        if request.status is Status.OK:
            self.run()
        elif request.status is not None:
            self._on_done(request.status)
