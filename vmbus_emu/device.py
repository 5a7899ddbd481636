"""The device interfaces: what a guest's workload sees, and what a driver implements.

At both ends of every I/O stands one of these. A driver implements it; a VSC implements it too, with a
VMBus channel and a VSP between itself and the driver. The workload cannot tell which it got. That is
the one idea of this project: what lies between two objects of this interface *is* the architecture.

So the interface is shaped for the far case, and the near case is its trivial form:

* A request is submitted and ends in exactly one completion: :data:`Status.OK`, an error status, or
  :data:`Status.GONE`. The completion may run inside ``submit`` (it does for a direct call), so a client
  must not submit from a completion without bound: append, and let the loop continue.
* Requests carry numbers and buffers only. A buffer belongs to the device from ``submit`` until the
  completion.
* Outstanding requests are bounded (``queue_depth``). One too many completes with :data:`Status.BUSY`.
* Expected failures are status values. An exception rising out of a device is a bug, and a bug ends the
  process that holds it.

Units: ``lba`` and ``blocks`` count logical blocks of ``block_size`` bytes (512).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Buffer = bytes | bytearray | memoryview


class Scatter:
    """Memory in several pieces, as a guest's page list may describe it; ``len()`` is their bytes together."""

    __slots__ = ("_length", "pieces")

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self.pieces = pieces
        self._length = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


#: What a block request moves: one piece of memory, or several.
Memory = Buffer | Scatter


def first(memory: Memory, nbytes: int) -> Memory:
    """The first ``nbytes`` of ``memory``, in place."""
    if len(memory) == nbytes:
        return memory
    if type(memory) is not Scatter:
        return memoryview(memory)[:nbytes]  # type: ignore[arg-type]
    kept = []
    for piece in memory.pieces:
        if nbytes:
            kept.append(piece[:nbytes])
            nbytes -= len(kept[-1])
    return Scatter(kept)


def fill(memory: Memory, data: Buffer) -> None:
    """Put ``data``, not longer than ``memory``, into it from the start."""
    done = 0
    view = memoryview(data)
    for piece in memory.pieces if type(memory) is Scatter else (memoryview(memory),):  # type: ignore[arg-type]
        part = view[done : done + len(piece)]
        piece[: len(part)] = part
        done += len(part)


BLOCK_SIZE = 512
PHYSICAL_BLOCK_SIZE = 4096
#: One request moves at most this many bytes. The real storvsp offers 256 KiB (docs/fidelity.md).
MAX_TRANSFER_BYTES = 1 << 20
#: Outstanding requests per device; one more is BUSY.
QUEUE_DEPTH = 64

ETHERNET_HEADER = 14
MIN_FRAME = ETHERNET_HEADER
DEFAULT_MTU = 1500


class Status(enum.IntEnum):
    """How a request ended."""

    OK = 0
    BUSY = 1            #: too many outstanding; nothing was done, try again after a completion
    GONE = 2            #: the device will not come back (or the interface was closed by its owner)
    OUT_OF_RANGE = 3    #: a block beyond the end of the disk
    READ_ONLY = 4       #: a write or unmap of a read-only disk
    INVALID = 5         #: the request makes no sense (buffer size, too large, frame too long)
    UNSUPPORTED = 6     #: the device does not know this operation
    IO_ERROR = 7        #: the medium failed


class Op(enum.IntEnum):
    """What a block request asks for."""

    READY = 0           #: the null request: TEST UNIT READY
    READ = 1
    WRITE = 2
    FLUSH = 3           #: completes when everything that completed before it was issued is durable
    UNMAP = 4           #: the blocks' contents are no longer needed; they read as zeros afterwards


# What every request's way asks for, as plain names: an attribute of an enumeration takes CPython 3.11 longer to find
# than a call.
NULL, READ, WRITE, FLUSH, UNMAP = Op
OK, BUSY = Status.OK, Status.BUSY


class BlockRequest:
    """One request to a :class:`BlockDevice`.

    ``buffer`` holds exactly ``blocks * 512`` bytes for READ (writable) and WRITE, else ``None``.
    A driver takes it in pieces, too.
    ``on_done`` is called once, with the request, when ``status`` is set.
    """

    __slots__ = ("blocks", "buffer", "lba", "on_done", "op", "status")

    def __init__(
        self,
        op: Op,
        lba: int = 0,
        blocks: int = 0,
        buffer: Memory | None = None,
        on_done: Callable[[BlockRequest], Any] = lambda request: None,
    ) -> None:
        self.op = op
        self.lba = lba
        self.blocks = blocks
        self.buffer = buffer
        self.on_done = on_done
        self.status: Status | None = None

    def finish(self, status: Status) -> None:
        """Complete the request. Called by the device, once; a second call is a bug in the device."""
        if self.status is not None:
            raise AssertionError(f"{self!r} completed twice")
        self.status = status
        self.on_done(self)

    def __repr__(self) -> str:
        state = "outstanding" if self.status is None else self.status.name
        return f"<{Op(self.op).name} lba={self.lba} blocks={self.blocks} {state}>"


def request_fault(request: BlockRequest, info: BlockInfo) -> Status | None:
    """The status a request must end with before any medium is touched, or ``None`` if it may proceed."""
    op = request.op
    if op is NULL or op is FLUSH:
        return None
    if request.lba < 0 or request.blocks < 0 or request.lba + request.blocks > info.block_count:
        return Status.OUT_OF_RANGE
    if op is not READ and info.read_only:
        return Status.READ_ONLY
    if op is UNMAP:
        return None
    if request.buffer is None or len(request.buffer) != request.blocks * BLOCK_SIZE:
        return Status.INVALID
    if len(request.buffer) > info.max_transfer_bytes:
        return Status.INVALID
    return None


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """What a disk is. ``serial`` is stable over restarts and unique in a machine."""

    block_count: int
    read_only: bool = False
    serial: str = ""
    max_transfer_bytes: int = MAX_TRANSFER_BYTES
    queue_depth: int = QUEUE_DEPTH

    @property
    def size_bytes(self) -> int:
        return self.block_count * BLOCK_SIZE


class BlockDevice(Protocol):
    """A disk: a driver, or a VSC that reaches one."""

    @property
    def info(self) -> BlockInfo: ...

    def submit(self, request: BlockRequest) -> None:
        """Start ``request``. Completes it exactly once, now or later, on the caller's own loop."""

    def allocate(self, nbytes: int) -> memoryview:
        """A writable buffer for requests to this device, placed where the device moves data cheapest."""

    def stats(self) -> BlockStats: ...


class Home(Protocol):
    """Where a driver lives."""

    #: How many pieces of work are in threads now: a loop that spun meanwhile would keep them from running.
    working: int

    def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """Run the callback where the driver may be called, from any thread."""


@dataclass(frozen=True, slots=True)
class BlockStats:
    """Counters of a disk since it was made. Bytes and requests; errors are completions that were not OK."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    other: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    outstanding: int = 0
    #: ``time.monotonic()`` of the last completion, 0.0 if there was none.
    last_io: float = 0.0

    @property
    def completed(self) -> int:
        return self.reads + self.writes + self.flushes + self.other


#: Takes one Ethernet frame (without FCS). ``False`` means it was dropped for want of room.
#: The buffer is valid only during the call.
Receiver = Callable[[Buffer], bool]


@dataclass(frozen=True, slots=True)
class PortInfo:
    """What a network port is. ``mac`` is six bytes; ``mtu`` counts the bytes after the Ethernet header."""

    mac: bytes
    mtu: int = DEFAULT_MTU

    @property
    def max_frame(self) -> int:
        return self.mtu + ETHERNET_HEADER


class NetworkPort(Protocol):
    """One end of a cable: a port of the virtual switch, or a VSC that reaches one."""

    @property
    def info(self) -> PortInfo: ...

    def transmit(self, frame: Buffer) -> Status:
        """Send one frame. OK: accepted (it may still be lost, as on a wire). BUSY: no credit now,
        ``on_ready`` given to :meth:`connect` is called when there is. INVALID: not a frame of this port.
        GONE: unplugged for good. The buffer is the caller's again on return."""

    def connect(self, receiver: Receiver, on_ready: Callable[[], None] | None = None) -> None:
        """Plug in: from now on frames arrive at ``receiver``."""

    def stats(self) -> PortStats: ...


@dataclass(frozen=True, slots=True)
class PortStats:
    """Counters of a network port, seen from the port: ``tx`` left through it, ``rx`` arrived for its owner."""

    tx_frames: int = 0
    tx_bytes: int = 0
    tx_drops: int = 0
    rx_frames: int = 0
    rx_bytes: int = 0
    rx_drops: int = 0
    outstanding: int = 0
    #: ``time.monotonic()`` of the last frame in either direction, 0.0 if there was none.
    last_io: float = 0.0


class CountingPort:
    """What ports that keep their own counters have in common; each has its own way of sending and delivering."""

    __slots__ = (
        "_info", "_last_io", "_on_ready", "_receiver", "_rx_bytes", "_rx_drops", "_rx_frames", "_tx_bytes", "_tx_drops",
        "_tx_frames",
    )

    def __init__(self, info: PortInfo) -> None:
        self._info = info
        self._receiver: Receiver | None = None
        self._on_ready: Callable[[], None] | None = None
        self._tx_frames = self._tx_bytes = self._tx_drops = 0
        self._rx_frames = self._rx_bytes = self._rx_drops = 0
        self._last_io = 0.0

    @property
    def info(self) -> PortInfo:
        return self._info

    def connect(self, receiver: Receiver, on_ready: Callable[[], None] | None = None) -> None:
        """Plug in ``receiver``, instead of what was plugged in before. Where ``transmit`` is never BUSY, nobody calls
        ``on_ready``."""
        self._receiver = receiver
        self._on_ready = on_ready

    @property
    def _outstanding(self) -> int:
        """Frames on their way, for :meth:`stats`."""
        return 0

    def stats(self) -> PortStats:
        return PortStats(
            tx_frames=self._tx_frames, tx_bytes=self._tx_bytes, tx_drops=self._tx_drops,
            rx_frames=self._rx_frames, rx_bytes=self._rx_bytes, rx_drops=self._rx_drops,
            outstanding=self._outstanding, last_io=self._last_io,
        )  # fmt: skip
