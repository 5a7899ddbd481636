"""What others take for the same: ``python -m bench.peers NAME [ARGUMENTS]``, each in fresh processes of its own.

* ``bare COUNT``: pyzmq DEALER/ROUTER over ipc, msgpack at both ends, blocking, 64 bytes each way;
* ``pipe COUNT``: ``multiprocessing.Pipe``, 64 bytes each way;
* ``iceoryx2 COUNT``: its Python binding, publish and subscribe, both ends polling, 64 bytes each way;
* ``preadv FILE SIZE COUNT SPAN``: a plain loop of ``preadv`` at random places, every byte of the result read.

Prints one line of JSON: ``p50_us`` and ``p99_us`` of a round trip, or ``bytes_per_s``. Round trips are timed where
they began, after a tenth of them for warming up.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from array import array
from collections.abc import Callable

MESSAGE = bytes(64)


def _timed(trip: Callable[[], object], count: int) -> dict[str, float]:
    for _ in range(count // 10):
        trip()
    times = array("q")
    now = time.perf_counter_ns
    for _ in range(count):
        begin = now()
        trip()
        times.append(now() - begin)
    ordered = sorted(times)
    return {"p50_us": ordered[count // 2] / 1000, "p99_us": ordered[count * 99 // 100] / 1000}


def _child(serve: Callable[[], None]) -> int:
    """``serve`` in a process of its own; it never returns there."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            serve()
        finally:
            os._exit(1)
    return pid


def bare(count: int) -> dict[str, float]:
    import msgpack
    import zmq

    with tempfile.TemporaryDirectory() as folder:
        path = f"ipc://{folder}/s"

        def serve() -> None:
            socket = zmq.Context().socket(zmq.ROUTER)
            socket.bind(path)
            while True:
                route, request = socket.recv_multipart()
                fields = msgpack.unpackb(request)
                socket.send_multipart((route, msgpack.packb([11, 0, fields[2], fields[3]])))

        pid = _child(serve)
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(path)
        number = 0

        def trip() -> None:
            nonlocal number
            number += 1
            socket.send(msgpack.packb([6, 1, number, MESSAGE]))
            if msgpack.unpackb(socket.recv())[2] != number:
                raise SystemExit("bare: an answer to another request")

        figures = _timed(trip, count)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        context.destroy(0)
    return figures


def pipe(count: int) -> dict[str, float]:
    ours, theirs = multiprocessing.Pipe()

    def serve() -> None:
        while True:
            theirs.send_bytes(theirs.recv_bytes())

    pid = _child(serve)

    def trip() -> None:
        ours.send_bytes(MESSAGE)
        ours.recv_bytes()

    figures = _timed(trip, count)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return figures


class _Sample(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint8 * 64),)


def iceoryx2(count: int) -> dict[str, float]:
    import iceoryx2 as iox2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    iox2.set_log_level(iox2.LogLevel.Error)
    there, back = (f"vmbus-emu-bench-{os.getpid()}-{way}" for way in "tb")

    def service(node: object, name: str) -> object:
        builder = node.service_builder(iox2.ServiceName.new(name))  # type: ignore[attr-defined]
        return builder.publish_subscribe(_Sample).open_or_create()

    ready, tell = os.pipe()

    def serve() -> None:
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        requests = service(node, there).subscriber_builder().create()  # type: ignore[attr-defined]
        answers = service(node, back).publisher_builder().create()  # type: ignore[attr-defined]
        os.write(tell, b"r")
        while True:
            sample = requests.receive()
            if sample is not None:
                sample.payload()
                answers.loan_uninit().write_payload(_Sample()).send()
                sample.delete()

    pid = _child(serve)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    requests = service(node, there).publisher_builder().create()  # type: ignore[attr-defined]
    answers = service(node, back).subscriber_builder().create()  # type: ignore[attr-defined]
    os.read(ready, 1)

    def trip() -> None:
        requests.loan_uninit().write_payload(_Sample()).send()
        while (sample := answers.receive()) is None:
            pass
        sample.payload()
        sample.delete()

    trip_once_connected(trip)
    figures = _timed(trip, count)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return figures


def trip_once_connected(trip: Callable[[], None]) -> None:
    """The first trip finds out whether the other end listens; a sample sent before that would be lost."""
    signal.setitimer(signal.ITIMER_REAL, 10)  # ends a process that would wait for a lost one
    trip()
    signal.setitimer(signal.ITIMER_REAL, 0)


def preadv(path: str, size: int, count: int, span: int) -> dict[str, float]:
    chance = random.Random(1)
    places = [chance.randrange(span // size) * size for _ in range(count)]
    buffer, scratch = bytearray(size), memoryview(bytearray(size))
    fd = os.open(path, os.O_RDONLY)
    begin = time.perf_counter()
    for place in places:
        if os.preadv(fd, (buffer,), place) != size:
            raise SystemExit("preadv: a short read")
        scratch[:] = buffer
    return {"bytes_per_s": size * count / (time.perf_counter() - begin)}


def main() -> None:
    name, *arguments = sys.argv[1:]
    if name == "preadv":
        figures = preadv(arguments[0], *map(int, arguments[1:]))
    else:
        figures = {"bare": bare, "pipe": pipe, "iceoryx2": iceoryx2}[name](int(arguments[0]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
