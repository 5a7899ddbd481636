"""A disk that holds every request until it is told what to hand it to: while a controller's driver is replaced."""

from __future__ import annotations

from vmbus_emu.device import BlockDevice, BlockInfo, BlockRequest, BlockStats


class HeldDisk:
    """A :class:`~vmbus_emu.device.BlockDevice`. Who submits bounds what is outstanding."""

    def __init__(self, info: BlockInfo) -> None:
        self._info = info
        self._target: BlockDevice | None = None
        self.held: list[BlockRequest] = []

    @property
    def info(self) -> BlockInfo:
        return self._info

    def allocate(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def submit(self, request: BlockRequest) -> None:
        if self._target is None:
            self.held.append(request)
        else:  # from a chain that began meanwhile
            self._target.submit(request)

    def release(self, target: BlockDevice) -> None:
        """Hand everything on, in order, and from now on at once."""
        self._target = target
        held, self.held = self.held, []
        for request in held:
            target.submit(request)

    def stats(self) -> BlockStats:
        return BlockStats(outstanding=len(self.held))
