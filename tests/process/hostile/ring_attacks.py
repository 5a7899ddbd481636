"""What a guest may do to memory and doorbells that it shares with a VSP, after it has opened its channel correctly.

Each attack takes the guest's end of its own disk's channel. The guest's driver is made deaf first: what it would do
next, a correct guest would do.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from collections.abc import Callable
from typing import Any

from partitions.child.links import RING
from vmbus_emu.guest_ring import GuestRing
from vmbus_emu.memory import PAGE
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol.packets import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Direction
from vmbus_emu.ring import READ_INDEX, WRITE_INDEX
from vmbus_emu.task import Future
from vmbus_emu.vmbus.client_effects import GpadlTornDown
from vmbus_emu.vmbus.gpadl import Range, encode_gpadl

NULL_REQUEST = vstor.execute_srb(scsi.test_unit_ready(), Direction.NONE)
READ_PAGE = vstor.execute_srb(scsi.read_16(0, 8), Direction.IN, PAGE)
#: Seconds of rewriting shared pages at full speed.
STORM_S = 1.0


def deafen(channel: GuestRing) -> None:
    """The driver hears and does nothing more; the rings and doorbells are the attack's."""
    channel._loop.unwatch(channel._bell)
    channel._poller.remove(channel)


def ring(channel: GuestRing) -> None:
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(channel._peer_bell, b"!")


def send(channel: GuestRing, *packet: Any) -> bool:
    """One packet past every check of this end."""
    sent = channel._writer.put(*packet)
    channel._writer.publish()
    ring(channel)
    return sent


def page_list(pfn: int, nbytes: int = PAGE, offset: int = 0, ranges: int = 1) -> bytes:
    return struct.pack("<IIIIQ", 0, ranges, nbytes, offset, pfn)


def write_index_beyond_the_ring(channel: GuestRing) -> None:
    channel._writer.words[WRITE_INDEX] = 1 << 31
    ring(channel)


def write_index_between_packets(channel: GuestRing) -> None:
    send(channel, IN_BAND, COMPLETION_REQUESTED, 1, NULL_REQUEST)
    channel._writer.words[WRITE_INDEX] = channel._writer._write - 4
    ring(channel)


def read_index_that_is_none(channel: GuestRing) -> None:
    """Of use to the host only when it looks for room: so it is kept answering until it does."""
    channel._reader.words[READ_INDEX] = 0xFFFF_FFF8
    while send(channel, IN_BAND, COMPLETION_REQUESTED, 1, NULL_REQUEST):
        pass


def packet_longer_than_what_is_written(channel: GuestRing) -> None:
    writer = channel._writer
    struct.pack_into("<HHHHQ", writer._data, writer._write, IN_BAND, 2, 0xFFFF, 1, 1)
    writer.words[WRITE_INDEX] = (writer._write + 64) % writer.size
    ring(channel)


def payload_inside_its_own_descriptor(channel: GuestRing) -> None:
    writer = channel._writer
    struct.pack_into("<HHHHQ", writer._data, writer._write, GPA_DIRECT, 1, 8, 1, 1)
    writer.words[WRITE_INDEX] = (writer._write + 72) % writer.size
    ring(channel)


def transfer_longer_than_its_pages(channel: GuestRing) -> None:
    send(channel, GPA_DIRECT, COMPLETION_REQUESTED, 1, READ_PAGE, page_list(channel._region.first_pfn, 512))


def pages_behind_the_region(channel: GuestRing) -> None:
    last = channel._region.first_pfn + channel._region.pages
    send(channel, GPA_DIRECT, COMPLETION_REQUESTED, 1, READ_PAGE, page_list(last))


def pages_of_the_network_region(channel: GuestRing) -> None:
    send(channel, GPA_DIRECT, COMPLETION_REQUESTED, 1, READ_PAGE, page_list((1 << 33) // PAGE))


def page_list_without_its_pages(channel: GuestRing) -> None:
    short = page_list(channel._region.first_pfn, 0xFFFF_F000)
    send(channel, GPA_DIRECT, COMPLETION_REQUESTED, 1, READ_PAGE, short)


def completion_of_nothing(channel: GuestRing) -> None:
    send(channel, COMPLETION, 0, 4711, bytes(vstor.PACKET_SIZE))


def full_ring_and_no_answer_taken(channel: GuestRing) -> None:
    end = time.monotonic() + 0.3
    while time.monotonic() < end:  # the host makes room as long as it can keep the answers
        send(channel, IN_BAND, COMPLETION_REQUESTED, 1, NULL_REQUEST)


def storm(channel: GuestRing) -> None:
    """Everything shared, rewritten at full speed while the host looks at it."""
    dice = random.Random(6)
    writer, reader = channel._writer, channel._reader
    end = time.monotonic() + STORM_S
    while time.monotonic() < end:
        for _ in range(50):
            at = dice.randrange(writer.size // 8) * 8
            writer._data[at : at + 24] = struct.pack(
                "<HHHHQII", dice.choice((IN_BAND, GPA_DIRECT, COMPLETION, 7, 99)), dice.randrange(8),
                dice.randrange(64), dice.randrange(3), dice.getrandbits(64), 0, dice.randrange(3),
            )
            writer.words[WRITE_INDEX] = dice.choice((at, writer._write))
            writer.words[dice.randrange(17)] = dice.randrange(writer.size // 8) * 8
            reader.words[dice.randrange(17)] = dice.randrange(reader.size // 8) * 8
        ring(channel)


def answers_taken_in_words_only(channel: GuestRing) -> None:
    """The ring of answers is full; its read index dances, and makes no room."""
    full_ring_and_no_answer_taken(channel)
    taken = channel._reader.words[READ_INDEX]
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        channel._reader.words[READ_INDEX] = taken + 8
        ring(channel)
        channel._reader.words[READ_INDEX] = taken
        ring(channel)


def doorbell_filled_and_closed(channel: GuestRing) -> None:
    own = os.open(f"/proc/self/fd/{channel._bell}", os.O_WRONLY | os.O_NONBLOCK)
    for fd in (channel._peer_bell, own):            # the host finds its own bell full, and its peer's as well
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, bytes(4096))
    for fd in (channel._bell, channel._peer_bell, own):
        os.set_blocking(fd, True)
    channel._writer.put(IN_BAND, COMPLETION_REQUESTED, 1, NULL_REQUEST)
    channel._writer.publish()
    channel._reader.words[2] = 0                    # "ring me"
    for fd in (channel._bell, channel._peer_bell, own):
        os.close(fd)


def doorbell_silenced(channel: GuestRing) -> None:
    """A pipe's other end can be opened by who has one: the ring is taken out before the host gets to it."""
    thief = os.open(f"/proc/self/fd/{channel._peer_bell}", os.O_RDONLY | os.O_NONBLOCK)
    end = time.monotonic() + STORM_S
    while time.monotonic() < end:
        ring(channel)
        with contextlib.suppress(BlockingIOError):
            os.read(thief, 4096)
    os.close(thief)


#: What to do, and why the host closes the channel; empty: it has no reason to.
ATTACKS: dict[Callable[[GuestRing], None], str] = {
    write_index_beyond_the_ring: "write_index is 2147483648",
    write_index_between_packets: "write_index is",
    read_index_that_is_none: "read_index is 4294967288",
    packet_longer_than_what_is_written: "a packet of 524288 bytes",
    payload_inside_its_own_descriptor: "a packet of 72 bytes with its payload at 8",
    transfer_longer_than_its_pages: "EXECUTE_SRB with direction",
    pages_behind_the_region: "a page list outside the granted memory",
    pages_of_the_network_region: "a page list outside the granted memory",
    page_list_without_its_pages: "page numbers are missing",
    completion_of_nothing: "request without completion requested",
    storm: "channel closed",
    full_ring_and_no_answer_taken: "",
    answers_taken_in_words_only: "",
    doorbell_filled_and_closed: "",
    doorbell_silenced: "",
}
BY_NAME = {attack.__name__: attack for attack in ATTACKS}


# -- by way of the provider ---------------------------------------------------------------------------------

#: GPADLs of the most pages that one can have, up to what a connection may describe.
_GPADLS, _PIECES = 8, 8000


async def memory_in_pieces(vp: Any, relid: int, region: Any) -> None:
    """No two pages of it adjacent: every one would be a mapping of its own, and a process may have 65,530."""
    pieces = Range(_PIECES * PAGE, 0, tuple(region.first_pfn + index % 64 * 2 for index in range(_PIECES)))
    for number in range(_GPADLS):
        posted = [
            vp.post(hv.CONNECTION_VMBUS, hv.MESSAGE_VMBUS, payload)
            for payload in encode_gpadl(relid, 0x700000 + number, (pieces,))
        ]
        for future in posted:
            await future


async def unfit_rings(driver: Any, relid: int) -> list[int]:
    """Close the channel and open it with indexes that are none, again and again, and at last with good ones: what
    the host answered. Between two opens the memory is taken back, so that the host looks at it no more."""
    coming = driver._offered_devices[relid]
    first, _ = coming.place.parts[RING]
    words = driver._links._regions["storvsp"].view[first * PAGE : (first + 1) * PAGE].cast("I")
    carry_out = driver._carry_out
    torn_down: Future[None] = Future()

    def watch(effect: Any) -> None:
        if isinstance(effect, GpadlTornDown):
            torn_down.resolve(None)
        carry_out(effect)

    driver._carry_out = watch
    driver._channels.pop(relid).close()
    driver._apply(driver.client.close(relid))
    answers = []
    for index in (3, 1 << 31, 4096 * 64 + 8, 0):
        torn_down = Future()
        driver._apply(driver.client.teardown_gpadl(coming.gpadls[RING]))
        await torn_down
        driver._links.prepare(coming.vsp, coming.place)
        words[READ_INDEX] = index   # the host's own: where it is to begin
        opened: Future[int] = Future()
        driver._opened = lambda relid, status, opened=opened: opened.resolve(status)
        gpadl, effects = driver.client.create_gpadl(relid, (driver._links.range(coming.vsp, coming.place, RING),))
        coming.gpadls[RING] = gpadl
        coming.open_id = 0
        driver._apply(effects)      # and it opens when the host has taken it
        answers.append(await opened)
    return answers
