"""What others take for a round trip of 64 bytes: ``python -m bench.baselines NAME [SECONDS [CPU CPU]]``.

Each has one process that asks and one that answers (``call`` has neither), fresh, each pinned to its processor if two
are given; the answer is looked at. Round trips are timed where they began, after a fifth of the time for warming up.
Prints one line of JSON: ``latencies_ns``.

* ``call``: a Python function that gets the message and returns it;
* ``pipe``, ``unix``, ``eventfd``: the kernel's, blocking; with ``eventfd`` the bytes lie in shared memory;
* ``mp-pipe``: ``multiprocessing.Pipe``;
* ``pyzmq``: DEALER/ROUTER over ipc, blocking; ``pyzmq-msgpack``: with an envelope at both ends;
* ``pyzmq-same-loop``: PAIR over ipc on our event loop, as a channel has it, without VMBus code;
* ``shm-spin``: shared memory, both ends look at it all the time;
* ``iceoryx2``: its Python binding, publish and subscribe, both ends polling.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MESSAGE = bytes(range(64))
_WARM_UP = 0.2
_PR_SET_PDEATHSIG = 1
#: Looked up before there is a process that may find locks taken.
_prctl = ctypes.CDLL(None).prctl

Trip = Callable[[], object]
#: The processor of who answers; nothing: any.
_answers_on: set[int] = set()


@contextmanager
def _answering(serve: Callable[[], None]) -> Iterator[None]:
    """``serve`` runs in a process of its own meanwhile; it never returns there, and ends with us, however we do."""
    asker = os.getpid()
    pid = os.fork()
    if pid == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != asker:       # it ended before that
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if _answers_on:
            os.sched_setaffinity(0, _answers_on)
        try:
            serve()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _same(answer: Any) -> None:
    if answer != MESSAGE:
        raise SystemExit(f"{sys.argv[1:2]}: another answer than was sent")


@contextmanager
def call() -> Iterator[Trip]:
    def answer(message: bytes) -> bytes:
        return message

    yield lambda: _same(answer(MESSAGE))


@contextmanager
def pipe() -> Iterator[Trip]:
    (there, to), (back, fro) = os.pipe(), os.pipe()

    def serve() -> None:
        while True:
            os.write(fro, os.read(there, 64))

    with _answering(serve):

        def trip() -> None:
            os.write(to, MESSAGE)
            _same(os.read(back, 64))

        yield trip


@contextmanager
def unix() -> Iterator[Trip]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        while True:
            theirs.send(theirs.recv(64))

    with _answering(serve):

        def trip() -> None:
            ours.send(MESSAGE)
            _same(ours.recv(64))

        yield trip


@contextmanager
def eventfd() -> Iterator[Trip]:
    shared = mmap.mmap(-1, 4096)
    to, fro = os.eventfd(0), os.eventfd(0)

    def serve() -> None:
        while True:
            os.eventfd_read(to)
            shared[64:128] = shared[:64]
            os.eventfd_write(fro, 1)

    def trip() -> None:
        shared[:64] = MESSAGE
        shared[64:72] = bytes(8)
        os.eventfd_write(to, 1)
        os.eventfd_read(fro)
        _same(shared[64:128])

    with _answering(serve):
        yield trip


@contextmanager
def mp_pipe() -> Iterator[Trip]:
    ours, theirs = multiprocessing.Pipe()

    def serve() -> None:
        while True:
            theirs.send_bytes(theirs.recv_bytes())

    with _answering(serve):

        def trip() -> None:
            ours.send_bytes(MESSAGE)
            _same(ours.recv_bytes())

        yield trip


@contextmanager
def shm_spin() -> Iterator[Trip]:
    """One word each way says how many messages there are; each end looks at the other's until it has changed."""
    shared = mmap.mmap(-1, 4096)
    words = memoryview(shared).cast("Q")
    request, reply = 0, 8               # each on a cache line of its own

    def serve() -> None:
        seen = 0
        while True:
            while words[request] == seen:
                pass
            seen += 1
            shared[192:256] = shared[128:192]
            words[reply] = seen

    sent = 0

    def trip() -> None:
        nonlocal sent
        sent += 1
        shared[128:192] = MESSAGE
        words[request] = sent
        while words[reply] != sent:
            pass
        _same(shared[192:256])

    with _answering(serve):
        yield trip


@contextmanager
def _dealer(
    encode: Callable[[int], bytes], answer: Callable[[bytes], bytes], check: Callable[[bytes, int], None]
) -> Iterator[Trip]:
    import zmq

    with tempfile.TemporaryDirectory() as folder:
        path = f"ipc://{folder}/s"

        def serve() -> None:
            router = zmq.Context().socket(zmq.ROUTER)
            router.bind(path)
            while True:
                route, request = router.recv_multipart()
                router.send_multipart((route, answer(request)))

        with _answering(serve):
            context = zmq.Context()
            dealer = context.socket(zmq.DEALER)
            dealer.connect(path)
            number = 0

            def trip() -> None:
                nonlocal number
                number += 1
                dealer.send(encode(number))
                check(dealer.recv(), number)

            yield trip
            context.destroy(0)


def pyzmq() -> Any:
    return _dealer(lambda number: MESSAGE, lambda request: request, lambda reply, number: _same(reply))


def pyzmq_msgpack() -> Any:
    import msgpack

    def answer(request: bytes) -> bytes:
        fields = msgpack.unpackb(request)
        packed: bytes = msgpack.packb([11, 0, fields[2], fields[3]])
        return packed

    def check(reply: bytes, number: int) -> None:
        fields = msgpack.unpackb(reply)
        if fields[2] != number:
            raise SystemExit("pyzmq-msgpack: an answer to another request")
        _same(fields[3])

    return _dealer(lambda number: msgpack.packb([6, 1, number, MESSAGE]), answer, check)


@contextmanager
def pyzmq_same_loop() -> Iterator[Trip]:
    import zmq

    from vmbus_emu.loop import Loop
    from vmbus_emu.zmqport import Context, ZmqPort

    with tempfile.TemporaryDirectory() as folder:

        def serve() -> None:
            loop = Loop()
            port = ZmqPort(loop, Context(1), zmq.PAIR, lambda frames: port.send(frames[0].bytes), max_message=1024)
            port.bind(f"{folder}/s")
            loop.run()

        with _answering(serve):
            loop, context = Loop(), Context(1)
            answers: list[bytes] = []
            ours = ZmqPort(
                loop, context, zmq.PAIR, lambda frames: answers.append(frames[0].bytes), max_message=1024
            )
            while not os.path.exists(f"{folder}/s"):
                time.sleep(0.001)  # for the other end, before anything is measured
            ours.connect(f"{folder}/s")

            def trip() -> None:
                ours.send(MESSAGE)
                loop.run_until(lambda: bool(answers), 10)
                _same(answers.pop())

            yield trip
            ours.close()
            context.term()


class _Sample(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint8 * 64),)


@contextmanager
def iceoryx2() -> Iterator[Trip]:
    import iceoryx2 as iox2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    iox2.set_log_level(iox2.LogLevel.Error)
    there, back = (f"vmbus-emu-bench-{os.getpid()}-{way}" for way in "tb")

    def service(node: Any, name: str) -> Any:
        return node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(_Sample).open_or_create()

    ready, tell = os.pipe()

    def serve() -> None:
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        requests = service(node, there).subscriber_builder().create()
        answers = service(node, back).publisher_builder().create()
        os.write(tell, b"r")
        while True:
            sample = requests.receive()
            if sample is not None:
                sample.payload()
                answers.loan_uninit().write_payload(_Sample()).send()
                sample.delete()

    with _answering(serve):
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        requests = service(node, there).publisher_builder().create()
        answers = service(node, back).subscriber_builder().create()
        os.read(ready, 1)

        def trip() -> None:
            requests.loan_uninit().write_payload(_Sample()).send()
            while (sample := answers.receive()) is None:
                pass
            sample.payload()
            sample.delete()

        signal.setitimer(signal.ITIMER_REAL, 10)  # a sample sent before the other end listens would be lost
        trip()
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield trip


BASELINES: dict[str, Callable[[], Any]] = {
    "call": call, "pipe": pipe, "unix": unix, "eventfd": eventfd, "mp-pipe": mp_pipe, "pyzmq": pyzmq,
    "pyzmq-msgpack": pyzmq_msgpack, "pyzmq-same-loop": pyzmq_same_loop, "shm-spin": shm_spin, "iceoryx2": iceoryx2,
}  # fmt: skip


def timed(name: str, seconds: float) -> array[int]:
    """Latencies of round trips of a baseline, ns, for so long."""
    times = array("q", bytes(8 * (int(seconds * 3e6) + 1000)))
    now = time.perf_counter_ns
    with BASELINES[name]() as trip:
        until = now() + int(seconds * _WARM_UP * 1e9)
        while now() < until:
            trip()
        count, until, room = 0, now() + int(seconds * 1e9), len(times)
        begin = now()
        while begin < until and count < room:
            trip()
            end = now()
            times[count] = end - begin
            count += 1
            begin = now()
    return times[:count]


def main() -> None:
    name, *rest = sys.argv[1:]
    if len(rest) > 1:
        os.sched_setaffinity(0, {int(rest[1])})
        _answers_on.add(int(rest[2]))
    print(json.dumps({"latencies_ns": timed(name, float(rest[0]) if rest else 0.3).tolist()}))


if __name__ == "__main__":
    main()
