"""Commands about disks."""

from __future__ import annotations

import time

from partitions.child.commands import blockio
from partitions.child.commands.options import count, disk, size
from partitions.child.console import CommandError, Session, Usage
from vmbus_emu.device import BLOCK_SIZE, BlockDevice, Op

_NULL_REQUESTS = 1000


def _range(session: Session, words: list[str]) -> tuple[BlockDevice, int, int]:
    """DISK OFFSET LENGTH, the range inside the disk."""
    if len(words) != 3:
        raise Usage("it takes a disk, an offset and a length")
    device = disk(session, words[0])
    offset, length = size(words[1], "offset"), size(words[2], "length")
    if offset + length > device.info.size_bytes:
        raise CommandError(f"{words[0]} ends at byte {device.info.size_bytes}")
    return device, offset, length


async def sha256(session: Session, arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise Usage("it takes one disk")
    device = disk(session, arguments[0])
    await session.print(f"{await blockio.digest(session.guest.loop, device)}  {arguments[0]}")
    return 0


async def read(session: Session, arguments: list[str]) -> int:
    device, offset, length = _range(session, arguments)
    async for piece in blockio.read_bytes(session.guest.loop, device, offset, length):
        await session.write(piece)
    return 0


async def write(session: Session, arguments: list[str]) -> int:
    if len(arguments) < 2:
        raise Usage("it takes a disk and an offset")
    device = disk(session, arguments[0])
    offset = size(arguments[1], "offset")
    loop = session.guest.loop
    total = 0
    data = " ".join(arguments[2:]).encode() if len(arguments) > 2 else await session.read_exactly(blockio.CHUNK)
    while data:
        if offset + total + len(data) > device.info.size_bytes:
            raise CommandError(f"{arguments[0]} ends at byte {device.info.size_bytes}; {total} bytes were written")
        await blockio.write_bytes(loop, device, offset + total, data)
        total += len(data)
        data = b"" if len(arguments) > 2 else await session.read_exactly(blockio.CHUNK)
    await session.complain(f"{total} bytes written to {arguments[0]} at {offset}")
    return 0


async def hexdump(session: Session, arguments: list[str]) -> int:
    words = [*arguments, "0", "256"][:3] if len(arguments) == 1 else [*arguments, "256"][:3]
    device, offset, length = _range(session, words)
    position = offset
    rest = b""
    async for piece in blockio.read_bytes(session.guest.loop, device, offset, length):
        data = rest + bytes(piece)
        for begin in range(0, len(data) - len(data) % 16, 16):
            await session.print(_hex_line(position, data[begin:begin + 16]))
            position += 16
        rest = data[len(data) - len(data) % 16:]
    if rest:
        await session.print(_hex_line(position, rest))
    return 0


def _hex_line(position: int, data: bytes) -> str:
    shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{position:08x}  {data.hex(' '):47}  |{shown}|"


async def sync(session: Session, arguments: list[str]) -> int:
    names = arguments or list(session.guest.disks)
    for name in names:
        await blockio.run(session.guest.loop, disk(session, name), Op.FLUSH)
    return 0


async def discard(session: Session, arguments: list[str]) -> int:
    device, offset, length = _range(session, arguments)
    if offset % BLOCK_SIZE or length % BLOCK_SIZE:
        raise Usage(f"offset and length must be multiples of {BLOCK_SIZE}")
    await blockio.run(session.guest.loop, device, Op.UNMAP, offset // BLOCK_SIZE, length // BLOCK_SIZE)
    return 0


async def null(session: Session, arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        raise Usage("it takes a disk and a number of requests")
    device = disk(session, arguments[0])
    number = count(arguments[1], "count", 1) if len(arguments) == 2 else _NULL_REQUESTS
    loop = session.guest.loop
    times = []
    for _ in range(number):
        begin = time.perf_counter_ns()
        await blockio.run(loop, device, Op.READY)
        times.append(time.perf_counter_ns() - begin)
    times.sort()
    await session.print(
        f"{number} null requests: min {times[0] / 1000:.1f} us, median {times[number // 2] / 1000:.1f} us, "
        f"max {times[-1] / 1000:.1f} us"
    )
    return 0


async def inquiry(session: Session, arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        raise Usage("it takes a disk and a page")
    device = disk(session, arguments[0])
    command = getattr(device, "command", None)
    if command is None:
        raise CommandError(f"{arguments[0]} is reached by calls; there is no SCSI between guest and driver here")
    from vmbus_emu.protocol import scsi

    page = None
    if len(arguments) == 2:
        try:
            page = int(arguments[1], 16)
        except ValueError:
            page = 256
        if not 0 <= page <= 255:
            raise Usage(f"page {arguments[1]!r} is not a byte in hex")
    _, scsi_status, data, sense = await command(scsi.inquiry(255, page), 255)
    if scsi_status:
        await session.complain(f"check condition, sense {bytes(sense).hex(' ')}")
        return 1
    for begin in range(0, len(data), 16):
        await session.print(_hex_line(begin, bytes(data[begin:begin + 16])))
    return 0


async def lsblk(session: Session, arguments: list[str]) -> int:
    await session.print(f"{'NAME':8} {'BYTES':>16} {'RO':>2} {'MAX':>9} {'DEPTH':>5}  SERIAL")
    for name, device in session.guest.disks.items():
        info = device.info
        await session.print(
            f"{name:8} {info.size_bytes:>16} {int(info.read_only):>2} {info.max_transfer_bytes:>9} "
            f"{info.queue_depth:>5}  {info.serial}"
        )
    return 0


async def iostat(session: Session, arguments: list[str]) -> int:
    await session.print("NAME         READS    WRITES FLUSHES     READ BYTES        WRITTEN ERRORS")
    for name, device in session.guest.disks.items():
        s = device.stats()
        await session.print(
            f"{name:8} {s.reads:>9} {s.writes:>9} {s.flushes:>7} {s.read_bytes:>14} {s.written_bytes:>14} {s.errors:>6}"
        )
    return 0


_DD_KEYS = {"if": "-", "of": "-", "bs": "512", "count": "", "skip": "0", "seek": "0", "conv": ""}


async def dd(session: Session, arguments: list[str]) -> int:
    values = dict(_DD_KEYS)
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in values:
            raise Usage(f"{word!r} is none of {' '.join(k + '=' for k in _DD_KEYS)}")
        values[key] = value
    block = size(values["bs"], "bs")
    if not 0 < block <= 64 << 20:
        raise Usage("bs must be from 1 to 64M")
    source = None if values["if"] == "-" else disk(session, values["if"])
    target = None if values["of"] in ("-", "null") else disk(session, values["of"])
    skip, seek = count(values["skip"], "skip") * block, count(values["seek"], "seek") * block
    limit = count(values["count"], "count") * block if values["count"] else None
    if values["conv"] not in ("", "fsync"):
        raise Usage("conv= knows only fsync")
    begin = time.perf_counter()
    total = await _copy(session, source, target, values["of"] == "null", skip, seek, limit)
    if target is not None and values["conv"] == "fsync":
        await blockio.run(session.guest.loop, target, Op.FLUSH)
    elapsed = max(time.perf_counter() - begin, 1e-9)
    await session.complain(f"{total} bytes copied, {elapsed:.6f} s, {total / elapsed / 1e6:.1f} MB/s")
    return 0


async def _copy(
    session: Session, source: BlockDevice | None, target: BlockDevice | None, discarded: bool,
    skip: int, seek: int, limit: int | None,
) -> int:
    """Copy and return the bytes copied. ``None`` is standard input or output."""
    loop = session.guest.loop
    total = 0

    async def put(piece: bytes | memoryview) -> None:
        nonlocal total
        if target is not None:
            if seek + total + len(piece) > target.info.size_bytes:
                raise CommandError(f"no space: the output ends at byte {target.info.size_bytes}; {total} bytes copied")
            await blockio.write_bytes(loop, target, seek + total, piece)
        elif not discarded:
            await session.write(piece)
        total += len(piece)

    if source is not None:
        rest = max(0, source.info.size_bytes - skip)
        length = rest if limit is None else min(rest, limit)
        if length:
            async for piece in blockio.read_bytes(loop, source, skip, length):
                await put(piece)
        return total
    await session.read_exactly(skip)
    while limit is None or total < limit:
        want = blockio.CHUNK if limit is None else min(blockio.CHUNK, limit - total)
        data = await session.read_exactly(want)
        if not data:
            break
        await put(data)
    return total
