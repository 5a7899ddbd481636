"""One ring of a VMBus channel, in the real layout: its control page, its packets, its rules (protocol sheet 3).

A ring has one writer and one reader, in two processes that do not trust each other. Each keeps its own index
privately and only ever stores it to the shared page; the other's index is loaded once per use, as one aligned 32-bit
word, and checked. A packet is copied out before anything about it is decided.

**Memory ordering.** Loads and stores of the shared words go through a ``memoryview`` of format ``I``, whose item access
is one 32-bit ``mov`` (a copy of four bytes of known size in CPython; ``struct`` in standard mode goes byte by byte and
would tear). On x86-64 stores become visible in program order and loads are done in program order, so packet before
write index, and write index before packet, need nothing more. What the machine may reorder is a store and a later
load, and there are three places where that would lose a wake-up:

* a writer publishes its index, then looks whether the reader sleeps (``interrupt_mask``, ``read_index``);
* a reader publishes its index, then looks whether the writer waits for room (``pending_send_sz``);
* whoever is about to sleep says so, then looks once more whether it may.

Between the two steps stands :func:`fence`. Taking and releasing a lock nobody else knows is a locked instruction on
x86-64, which is a full fence. A weakly ordered machine would also need release and acquire ordering around every
index, which pure Python cannot give cheaply; so the ring is refused there.

(Longer than most files: the two ends of one layout, and each rule's both sides, belong before one pair of eyes.)
"""

from __future__ import annotations

import struct
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from vmbus_emu.memory import PAGE, PageRange
from vmbus_emu.protocol.packets import (
    COMPLETION_REQUESTED,
    GPA_DIRECT,
    MAX_MESSAGE_BYTES,
    PACKET_TYPES,
    TRANSFER_PAGES,
)

# Words of the control page (3.2).
WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND_SIZE, FEATURES = 0, 1, 2, 3, 16
#: FEATURES bit 0, set by a ring's writer: it uses pending_send_sz here, and honours it in the other ring.
FLOW_CONTROL = 1
#: Offset 4088, as a qword: how often the guest rang the doorbell for this ring. A statistic, never a decision.
_INTERRUPT_COUNT = 511

DESCRIPTOR_BYTES = 16
TRAILER_BYTES = 8
#: GPA-direct and transfer-page packets have at least this much in front of their payload.
_VARIABLE_BYTES = 24

_QWORD_FROM = struct.Struct("<Q").unpack_from
_PAIR_FROM = struct.Struct("<II").unpack_from
#: Distinct packet shapes remembered per ring and direction: a peer that varies them gains nothing but its own slowness.
_SHAPES = 256

_fence = allocate_lock()
_acquire, _release = _fence.acquire, _fence.release

#: How to read one kind of packet: descriptor qword, unpacker, bytes in the ring, packet type, flags.
_Shape = tuple[int, Callable[[memoryview, int], tuple[Any, ...]], int, int, int]


def fence() -> None:
    """Everything stored before is visible to the peer before anything is loaded after (see the module's text)."""
    _acquire(False)
    _release()


class RingFault(Exception):
    """What a peer did to a ring that no correct peer does. Caught by the channel, which it ends."""


_NOTHING = memoryview(b"")


class _Ring:
    """``memory``: a control page, then the data area mapped twice, as :meth:`vmbus_emu.memory.Region.ring` makes it."""

    def __init__(self, memory: memoryview) -> None:
        self.words = memory[:PAGE].cast("I")
        self._data = memory[PAGE:]
        self.size = len(self._data) // 2

    def let_go(self) -> None:
        """Keep nothing mapped. The ring cannot be used any more."""
        self.words = self._data = _NOTHING

    def _checked(self, index: int, name: str) -> int:
        if index >= self.size or index & 7:
            raise RingFault(f"{name} is {index} in a ring of {self.size} bytes")
        return index


def reset(memory: memoryview) -> None:
    """A fresh ring: what a guest does to both of a channel's before it describes them to the host."""
    memory[:PAGE] = bytes(PAGE)


class RingWriter(_Ring):
    """The writing end. Packets become visible to the reader with :meth:`publish`, or before if it has nothing left."""

    def __init__(self, memory: memoryview) -> None:
        """Raises :class:`RingFault` if the indexes make no sense."""
        super().__init__(memory)
        self._count = memory[:PAGE].cast("Q")
        self._write = self._checked(self.words[WRITE_INDEX], "write_index")
        self._published = self._first = self._write
        self._laps = 0                  # since then
        self._settled = self._write     # up to here it was made sure that the reader knows
        # Whether room was found, and whether the batch last published found some, after it had begun: only then can it
        # be a whole lap long, and positions within it say nothing.
        self._more = self._lapped = False
        self._free = 0                  # bytes that are certainly free
        self._read = -1                 # the last read_index that was looked at
        self._starved = False           # pending_send_sz is set
        #: The reader of what was just put seems to sleep: it is worth ringing now, see :meth:`publish`.
        self.knock = False
        self._shapes: dict[tuple[int, int, int], tuple[int, int, Callable[..., None]]] = {}
        self._wanted = 0                # bytes that put found too few of
        self.words[PENDING_SEND_SIZE] = 0
        self.words[FEATURES] = FLOW_CONTROL

    def put(self, packet_type: int, flags: int, transaction_id: int, message: Any, variable: bytes = b"") -> bool:
        """Write one packet; ``variable`` is what stands between descriptor and payload (GPA-direct).

        ``False``: there is no room now. The reader has been asked to say when there is.
        """
        if packet_type == TRANSFER_PAGES:  # where its payload begins depends on how many ranges it says it has
            key = (packet_type << 1 | flags, len(message), _PAIR_FROM(message)[1])
        else:
            key = (packet_type << 1 | flags, len(message), len(variable))
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shape(key, packet_type, flags, message, variable)
        head, total, pack_into = shape
        if total > self._free and not self._find_room(total):
            return False
        if type(message) is memoryview:  # struct takes none
            message = bytes(message)
        at = self._write
        if variable:
            pack_into(self._data, at, head, transaction_id, variable, message, at << 32)
        else:
            pack_into(self._data, at, head, transaction_id, message, at << 32)
        self._free -= total
        at += total
        if at >= self.size:
            at -= self.size
            self._laps += 1
        self._write = at
        words = self.words
        if words[READ_INDEX] == self._published:
            # The reader has nothing left, so it need not wait for the rest of the batch.
            words[WRITE_INDEX] = self._published = at
            if not words[INTERRUPT_MASK]:  # looked at without a fence: a hint, never the last word
                self.knock = True
        return True

    def _shape(
        self, key: tuple[int, int, int], packet_type: int, flags: int, message: Any, variable: bytes
    ) -> tuple[int, int, Callable[..., None]]:
        """Descriptor qword, bytes in the ring, and packer of every packet of these sizes."""
        length, between = len(message), len(variable)
        padding = -(length + between) % 8
        body = DESCRIPTOR_BYTES + between + length + padding
        start = DESCRIPTOR_BYTES + between
        if packet_type == TRANSFER_PAGES:  # its variable part stands in front of the message, see RingReader
            start += 8 + 8 * _PAIR_FROM(message)[1]
        head = packet_type | start // 8 << 16 | body // 8 << 32 | flags << 48
        middle = f"{between}s" if between else ""
        packer = struct.Struct(f"<QQ{middle}{length}s{padding}xQ")
        shape = head, body + TRAILER_BYTES, packer.pack_into
        if len(self._shapes) < _SHAPES:
            self._shapes[key] = shape
        return shape

    def _room(self) -> int:
        read = self._read = self._checked(self.words[READ_INDEX], "read_index")
        return self.size - TRAILER_BYTES - (self._write - read) % self.size

    def _find_room(self, total: int) -> bool:
        if total > self.size - TRAILER_BYTES:
            raise RingFault(f"a packet of {total} bytes in a ring of {self.size}")
        self._more = self._more or self._settled != self._write
        self._free = self._room()
        if self._free < total:
            # What was written becomes public first: the reader judges by the public index whether it makes the room.
            self.words[WRITE_INDEX] = self._published = self._write
            # Ask to be told, then look again: the reader may have made room before it could see the question.
            self.words[PENDING_SEND_SIZE] = total
            self._starved = True
            self._wanted = total
            fence()
            self._free = self._room()
            if self._free < total:
                return False
        if self._starved:
            self._starved = False
            self.words[PENDING_SEND_SIZE] = 0
        return True

    @property
    def put_bytes(self) -> int:
        """What all packets so far took in the ring."""
        return self._laps * self.size + self._write - self._first

    def has_room(self) -> bool:
        """Whether :meth:`put` would not find too little room any more (or a fault)."""
        read = self.words[READ_INDEX]
        if read == self._read:
            return False
        return (
            read >= self.size or read & 7 != 0
            or self.size - TRAILER_BYTES - (self._write - read) % self.size >= self._wanted
        )

    def publish(self) -> int:
        """Show the reader all that was written. To be followed by :func:`fence` and :meth:`must_ring` of what this
        returns: where the batch began, or -1 if there was none."""
        start = self._settled
        self._lapped, self._more = self._more, False
        if start == self._write and not self._lapped:
            return -1
        if self._published != self._write:
            self._published = self.words[WRITE_INDEX] = self._write
        self._settled = self._write
        self.knock = False
        return start

    def must_ring(self, start: int) -> bool:
        """Whether the reader sleeps and the batch from ``start`` on found the ring empty, or emptied by a reader that
        took the beginning of the batch and slept then (3.5, in qemu's wider form)."""
        words = self.words
        if words[INTERRUPT_MASK]:
            return False
        return self._lapped or (words[READ_INDEX] - start) % self.size < (self._settled - start) % self.size

    def count_ring(self) -> None:
        """The guest rang the doorbell."""
        self._count[_INTERRUPT_COUNT] = (self._count[_INTERRUPT_COUNT] + 1) & ((1 << 64) - 1)


class RingReader(_Ring):
    """The reading end. Room is given back with :meth:`publish`, all at once."""

    def __init__(self, memory: memoryview) -> None:
        """Raises :class:`RingFault` if the indexes make no sense."""
        super().__init__(memory)
        #: Up to where packets were taken. Equal to the shared write_index when there is nothing new.
        self.position = self._checked(self.words[READ_INDEX], "read_index")
        self._published = self.position
        self._left = 0                  # bytes up to the last write_index that was looked at
        self._stopped = False
        #: By the descriptor's first qword.
        self._shapes: dict[int, _Shape] = {}
        self._shape: _Shape = (-1, _QWORD_FROM, 0, 0, 0)
        self.words[INTERRUPT_MASK] = 1

    def read(
        self, most: int, on_packet: Callable[[int, int, int, bytes, None], Any],
        on_direct: Callable[[int, int, bytes, bytes], Any],
    ) -> int:
        """Take up to ``most`` packets and hand each over; the number taken. Raises :class:`RingFault`.

        ``on_packet(packet type, flags, transaction id, message, None)``; a GPA-direct packet goes to ``on_direct(flags,
        transaction id, message, page list)``, see :func:`page_ranges`. Ends early after :meth:`stop`.
        """
        data, size, position = self._data, self.size, self.position
        head, unpack, total, packet_type, flags = self._shape
        left, count = self._left, 0
        self._stopped = False
        while count < most:
            if not left:
                write = self.words[WRITE_INDEX]
                if write == position:
                    break
                left = (self._checked(write, "write_index") - position) % size
            # One look at the packet. Mostly it has the shape of the one before; else it is looked at again.
            fields = unpack(data, position)
            if fields[0] != head:
                shape = self._shapes.get(_QWORD_FROM(data, position)[0]) or self._learn(position, left)
                self._shape = head, unpack, total, packet_type, flags = shape
                fields = unpack(data, position)
                if fields[0] != head:
                    raise RingFault("a descriptor changed while it was read")
            if total > left:
                raise RingFault(f"a packet of {total} bytes where {left} are written")
            left -= total
            position += total
            if position >= size:
                position -= size
            count += 1
            # Stored before the packet is handled: the handler may look whether there is more.
            self._left, self.position = left, position
            if packet_type == GPA_DIRECT:
                on_direct(flags, fields[1], fields[3], fields[2])
            else:
                on_packet(packet_type, flags, fields[1], fields[2], None)
            if self._stopped:
                break
        return count

    def stop(self) -> None:
        """Hand over nothing more in this turn."""
        self._stopped = True

    def _learn(self, at: int, left: int) -> _Shape:
        """How to read the packet at ``at``, from its descriptor alone: which is all that its validity depends on."""
        (head,) = _QWORD_FROM(self._data, at)
        packet_type, flags = head & 0xFFFF, head >> 48
        start, end = (head >> 16 & 0xFFFF) * 8, (head >> 32 & 0xFFFF) * 8
        total = end + TRAILER_BYTES
        if packet_type not in PACKET_TYPES or flags & ~COMPLETION_REQUESTED:
            raise RingFault(f"a packet of type {packet_type} with flags {flags:#x}")
        if not DESCRIPTOR_BYTES <= start <= end or total > left:
            raise RingFault(f"a packet of {total} bytes with its payload at {start} where {left} are written")
        between, message = start - DESCRIPTOR_BYTES, end - start
        if packet_type in (GPA_DIRECT, TRANSFER_PAGES) and start < _VARIABLE_BYTES:
            raise RingFault(f"a packet of type {packet_type} with its payload at {start}")
        if packet_type == TRANSFER_PAGES:
            # The fields are handed over in front of the message, as on every transport, and say themselves how many
            # ranges there are: whoever reads them goes by that, within the bytes there are.
            between, message = 0, end - DESCRIPTOR_BYTES
        if message > MAX_MESSAGE_BYTES:
            raise RingFault(f"a message of {message} bytes")
        kept = "s" if packet_type == GPA_DIRECT else "x"
        shape = head, struct.Struct(f"<QQ{between}{kept}{message}s").unpack_from, total, packet_type, flags
        if len(self._shapes) < _SHAPES:
            self._shapes[head] = shape
        return shape

    def publish(self) -> int:
        """Give the room of what was taken back. To be followed by :func:`fence` and :meth:`must_ring` of what this
        returns: the position before, or -1 if nothing was taken."""
        before = self._published
        if before == self.position:
            return -1
        self._published = self.words[READ_INDEX] = self.position
        return before

    def must_ring(self, before: int) -> bool:
        """Whether the writer waits for room, and the batch taken since ``before`` made it (3.5: the safe superset)."""
        words = self.words
        pending = words[PENDING_SEND_SIZE]
        if not pending or not words[FEATURES] & FLOW_CONTROL:
            return False
        write = words[WRITE_INDEX]
        free_before = self.size - (write - before) % self.size - TRAILER_BYTES
        return free_before <= pending <= self.size - (write - self._published) % self.size

    def sleep(self) -> None:
        """Ask for the doorbell. To be followed by :func:`fence` and :meth:`has_news`."""
        self.words[INTERRUPT_MASK] = 0

    def wake(self) -> None:
        """No doorbell is needed: this end looks by itself."""
        self.words[INTERRUPT_MASK] = 1

    def has_news(self) -> bool:
        return self.words[WRITE_INDEX] != self.position or self._left > 0


def page_ranges(variable: bytes) -> list[PageRange]:
    """The ranges in the variable part of a GPA-direct packet (3.3; rules 5 and 8 of section 8).

    Raises :class:`RingFault` if they are not well formed. Whether the pages are the sender's is another question.
    """
    count = _PAIR_FROM(variable)[1]
    if not 0 < count * 16 <= len(variable):
        raise RingFault(f"{count} ranges in {len(variable)} bytes")
    ranges = []
    at = 8
    for _ in range(count):
        if at + 16 > len(variable):
            raise RingFault("a range is cut off")
        byte_count, byte_offset = _PAIR_FROM(variable, at)
        if not byte_count or byte_offset >= PAGE or byte_offset + byte_count + PAGE - 1 >= 1 << 32:
            raise RingFault(f"a range of {byte_count} bytes at offset {byte_offset}")
        start = at + 8
        at = start + (byte_offset + byte_count + PAGE - 1) // PAGE * 8
        if at > len(variable):
            raise RingFault("page numbers are missing")
        ranges.append((byte_count, byte_offset, variable[start:at]))
    if at != len(variable):
        raise RingFault("more page numbers than pages")
    return ranges
