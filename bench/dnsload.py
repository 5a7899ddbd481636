"""A load on the role ``dns``, in a process of its own: ``python -m bench.dnsload PORT QUERY ANSWER OUTSTANDING FD``.

It keeps so many queries under way over UDP, forever, and has no more to do per query than to send bytes that are there
already and to compare those that come: the answer's id must be that of a query under way, and all behind it what was
answered and understood once (QUERY and ANSWER, in hex). So it costs a small part of what the server does. Its counters
lie in the memory of FD (:data:`COUNTERS`, 8 bytes each); it prints a line when the first answer is there, right or
wrong, and ends when its parent has.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Protocol

#: Answers that are right, that are wrong, that came too late; queries without an answer.
COUNTERS = ("answered", "wrong", "late", "lost")
_ANSWERED, _WRONG, _LATE, _LOST = range(len(COUNTERS))
#: Queries that are made beforehand, each with an id of its own.
_IDS = 4096
#: An answer that takes so long is not waited for.
_LOST_AFTER_S = 1
_LARGEST = 2048
#: Answers between two looks at whether the parent lives.
_LOOK_EACH = 256


class Counters(Protocol):
    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


def flood(
    send: Callable[[bytes], object], receive: Callable[[], bytes | None], query: bytes, answer: bytes, outstanding: int,
    counters: Counters, over: Callable[[], bool],
) -> None:
    """Until ``over()``. ``receive``: the next datagram, ``None`` if none came for a second."""
    queries = [number.to_bytes(2, "big") + query[2:] for number in range(_IDS)]
    expected, waiting, place = answer[2:], set[bytes](), 0

    def ask() -> None:
        nonlocal place
        packet = queries[place]
        place = (place + 1) % _IDS
        waiting.add(packet[:2])
        send(packet)

    turns = 0
    while True:
        while len(waiting) < outstanding:
            ask()
        data = receive()
        turns += data is not None
        if data is None:
            counters[_LOST] += len(waiting)
            waiting.clear()
        elif data[2:] != expected:
            counters[_WRONG] += 1
            waiting.discard(data[:2])
        elif data[:2] in waiting:
            counters[_ANSWERED] += 1
            waiting.remove(data[:2])
        else:
            counters[_LATE] += 1
        if (data is None or turns % _LOOK_EACH == 1) and over():
            return


def main() -> None:
    port, outstanding, fd = (int(sys.argv[place]) for place in (1, 4, 5))
    query, answer = (bytes.fromhex(sys.argv[place]) for place in (2, 3))
    parent = os.getppid()
    counters = memoryview(mmap.mmap(fd, 8 * len(COUNTERS))).cast("Q")
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _LOST_AFTER_S, 0))
    end.connect(("127.0.0.1", port))
    told = False

    def receive() -> bytes | None:
        try:
            return end.recv(_LARGEST)
        except BlockingIOError:
            return None

    def over() -> bool:
        nonlocal told
        if not told and (counters[_ANSWERED] or counters[_WRONG]):
            told = True
            print("answered", flush=True)
        return os.getppid() != parent

    try:
        flood(end.send, receive, query, answer, outstanding, counters, over)
    except ConnectionRefusedError:
        raise SystemExit(f"nobody listens at port {port}") from None


if __name__ == "__main__":
    main()
