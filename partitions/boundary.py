"""The monolith's boundary between a VM and the host: the one object each guest's device access goes through.

It holds what the architecture itself needs, so that drivers and guests stay as they are elsewhere:

* **Whose bug it is.** An exception that rises out of a driver is the host's: :func:`panic` prints the reason and
  the traceback and aborts the one process, whether it happened on a guest's thread or in an I/O worker. One that
  rises in guest code never passes through here: completions run after the driver has returned.
* **One lock per device** (per switch for the network), since guests are threads and drivers are lock-free.
* **The hand-off** of completions and frames into the thread of the VM they are for.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from vmbus_emu.device import (
    BlockDevice,
    BlockInfo,
    BlockRequest,
    BlockStats,
    Buffer,
    NetworkPort,
    Op,
    PortInfo,
    PortStats,
    Receiver,
    Status,
)
from vmbus_emu.loop import Loop

#: Frames that wait for a VM's thread; more are dropped and counted by the switch.
INBOX_FRAMES = 256
#: What changes a medium.
MUTATING = frozenset((Op.WRITE, Op.UNMAP))


#: Taken by the first thread that panics, and never given back: others would write into its words.
_panicking = threading.Lock()


def panic(where: str) -> NoReturn:
    """The end of the monolith: say why, on the console, and abort."""
    _panicking.acquire()
    sys.stderr.write(f"*** HOST PANIC in {where}: {sys.exc_info()[1]!r}\n")
    traceback.print_exc()
    sys.stderr.flush()
    faulthandler.disable()  # it would say once more, and with less, where this is
    os.abort()


class DeviceLock:
    """One driver's lock, and the way back to it for the driver's I/O workers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.working = 0

    def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """Run a worker's completion as the driver may expect it: alone."""
        with self.lock:
            try:
                callback(*arguments)
            except BaseException:
                panic(self.name)


class BoundDisk:
    """A driver as one VM's :class:`~vmbus_emu.device.BlockDevice`. ``loop`` is the VM's."""

    def __init__(self, driver: BlockDevice, lock: DeviceLock, loop: Loop) -> None:
        self._driver = driver
        self._name = lock.name
        self._lock = lock.lock
        self._loop = loop

    @property
    def info(self) -> BlockInfo:
        return self._driver.info

    def allocate(self, nbytes: int) -> memoryview:
        return self._driver.allocate(nbytes)

    def stats(self) -> BlockStats:
        return self._driver.stats()

    def submit(self, request: BlockRequest) -> None:
        done = request.on_done
        request.on_done = _nothing
        with self._lock:
            try:
                self._driver.submit(request)
            except BaseException:
                panic(self._name)
            if request.status is None:  # a worker has it; its completion needs the lock, so this is in time
                request.on_done = lambda finished: self._loop.call_soon_threadsafe(self._hand_back, finished, done)
                return
        self._hand_back(request, done)

    # -- held still: nothing of this stands in the way of a request at any other time ------------------

    def hold_writes(self) -> None:
        """From now on no WRITE or UNMAP reaches the driver: it waits."""
        if not isinstance(self._driver, _Holding):
            self._driver = _Holding(self._driver)

    def writes_settled(self) -> bool:
        """Whether nothing that changes the medium is under way any more. Until then reads wait, too, or it might never
        be seen."""
        holding = self._driver
        if isinstance(holding, _Holding) and not holding.settled and not holding.stats().outstanding:
            holding.settled = True
            self._release([request for request in holding.held if request.op not in MUTATING])
            holding.held = [request for request in holding.held if request.op in MUTATING]
        return not isinstance(holding, _Holding) or holding.settled

    def release_writes(self) -> None:
        """The end of that. Idempotent."""
        holding = self._driver
        if isinstance(holding, _Holding):
            self._driver = holding.driver
            self._release(holding.held)

    def _release(self, requests: list[BlockRequest]) -> None:
        driver = self._driver.driver if isinstance(self._driver, _Holding) else self._driver
        with self._lock:
            try:
                for request in requests:
                    driver.submit(request)
            except BaseException:
                panic(self._name)

    @staticmethod
    def _hand_back(request: BlockRequest, done: Callable[[BlockRequest], Any]) -> None:
        request.on_done = done
        done(request)


class _Holding:
    """Stands before a driver while nothing may change its medium."""

    def __init__(self, driver: BlockDevice) -> None:
        self.driver = driver
        self.settled = False
        self.held: list[BlockRequest] = []

    @property
    def info(self) -> BlockInfo:
        return self.driver.info

    def allocate(self, nbytes: int) -> memoryview:
        return self.driver.allocate(nbytes)

    def stats(self) -> BlockStats:
        return self.driver.stats()

    def submit(self, request: BlockRequest) -> None:
        if request.op is Op.FLUSH or (self.settled and request.op not in MUTATING):
            self.driver.submit(request)
        elif len(self.held) >= self.info.queue_depth:
            request.finish(Status.BUSY)
        else:
            self.held.append(request)


def _nothing(request: BlockRequest) -> None:
    """A completion inside ``submit`` is noticed after the driver has returned."""


class BoundPort:
    """A switch port as one VM's :class:`~vmbus_emu.device.NetworkPort`. ``loop`` is the VM's."""

    def __init__(self, port: NetworkPort, lock: DeviceLock, loop: Loop) -> None:
        self._port = port
        self._name = lock.name
        self._lock = lock.lock
        self._loop = loop
        self._inbox: deque[bytes] = deque()
        self._woken = False
        self._receiver: Receiver | None = None
        port.connect(self._arrived)

    @property
    def info(self) -> PortInfo:
        return self._port.info

    def stats(self) -> PortStats:
        return self._port.stats()

    def connect(self, receiver: Receiver, on_ready: Callable[[], None] | None = None) -> None:
        self._receiver = receiver

    def transmit(self, frame: Buffer) -> Status:
        with self._lock:
            try:
                return self._port.transmit(frame)
            except BaseException:
                panic(self._name)

    def _arrived(self, frame: Buffer) -> bool:
        """On the sender's thread, under the switch's lock: put the frame where the VM's thread finds it."""
        if self._receiver is None or len(self._inbox) >= INBOX_FRAMES:
            return False
        self._inbox.append(bytes(frame))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)
        return True

    def _drain(self) -> None:
        # A sender appends first and looks at the flag afterwards; here the flag falls first. So whoever still saw it
        # set has its frame in the inbox by now; at worst we are woken once too often.
        self._woken = False
        while self._inbox:
            frame = self._inbox.popleft()
            if self._receiver is not None:
                self._receiver(frame)


#: Where a thread passes from the guest's side to the driver's, and where back: the innermost one on its stack says
#: whose code it runs.
INTO_DRIVERS = frozenset(
    way.__code__ for way in (BoundDisk.submit, BoundPort.transmit, DeviceLock.call_soon_threadsafe)
)
INTO_GUESTS = frozenset(way.__code__ for way in (BoundDisk._hand_back, BoundPort._drain))
