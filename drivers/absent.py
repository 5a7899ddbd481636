"""A disk behind a controller that nobody can drive: it is there, its size is known, and every request fails."""

from __future__ import annotations

from drivers.disk import Disk
from vmbus_emu.device import BlockInfo, BlockRequest, Op, Status


class AbsentDisk(Disk):
    def __init__(self, info: BlockInfo) -> None:
        super().__init__(info)
        self._operations = dict.fromkeys(Op, self._fail)

    def _fail(self, request: BlockRequest) -> None:
        self._complete(request, Status.IO_ERROR)
