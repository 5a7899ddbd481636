"""The trial of a driver, as a program: ``python -m vmbus_emu.driver_trial ENTRY PATH [MODEL ...]``.

It loads the driver and has it drive a scratch device of each model that it claims, of MODELs if any are given: a disk
in memory, written and read back; a NIC between two queues. The last line of its output is JSON: what the driver says
of itself, or ``{"error": why}``. Whatever the driver does, it does to this process.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any

from vmbus_emu.device import BLOCK_SIZE, MAX_TRANSFER_BYTES, QUEUE_DEPTH, BlockInfo, BlockRequest, Op, Status
from vmbus_emu.hardware import STORAGE, Driver
from vmbus_emu.loop import Loop

_BLOCKS = 8192
_PATIENCE_S = 2.0
_FRAME = bytes(range(64))


def main() -> None:
    entry, path, *models = sys.argv[1:]
    try:
        answer = trial(entry, path, models)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # whatever threads it has started


def trial(entry: str, path: str, models: list[str]) -> dict[str, Any]:
    """What the driver says of itself, once it has passed; or ``error``."""
    if path:
        sys.path.insert(0, path)
    module, _, name = entry.partition(":")
    driver = getattr(importlib.import_module(module), name)
    if not isinstance(driver, Driver):
        return {"error": f"it is a {type(driver).__name__}, not a vmbus_emu.hardware.Driver"}
    if driver.fault():
        return {"error": driver.fault()}
    for model in [model for model in driver.models if not models or model in models]:
        try:
            why = _drive_disk(driver, model) if driver.kind == STORAGE else _drive_nic(driver, model)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            return {"error": f"it claims {model} and cannot drive it: {why}"}
    return {"name": driver.name, "version": driver.version, "kind": driver.kind, "models": list(driver.models)}


class _Disk:
    """A driver's disk on a loop of its own."""

    def __init__(self, driver: Driver, model: str) -> None:
        self.loop = Loop()
        fd = os.memfd_create("trial")
        os.ftruncate(fd, _BLOCKS * BLOCK_SIZE)
        info = BlockInfo(_BLOCKS, serial="TRIAL")
        medium = importlib.import_module("drivers.disk").ram_disk(fd, info, self.loop)
        self.device = driver.attach(model, medium)
        self.right = self.device.info == info

    def run(self, *requests: BlockRequest) -> list[Status | None]:
        """Submit them all; how each ended, ``None``: it did not."""
        for request in requests:
            self.device.submit(request)
        self.loop.run_until(lambda: all(request.status is not None for request in requests), _PATIENCE_S)
        return [request.status for request in requests]


def _drive_disk(driver: Driver, model: str) -> str:
    disk = _Disk(driver, model)
    if not disk.right:
        return "its disk has another size, serial or limit than the medium"
    chance = random.Random(model)
    data = chance.randbytes(MAX_TRANSFER_BYTES)
    largest = MAX_TRANSFER_BYTES // BLOCK_SIZE
    back = bytearray(MAX_TRANSFER_BYTES)
    steps: list[tuple[str, list[BlockRequest]]] = [
        ("a null request", [BlockRequest(Op.READY)]),
        ("a write of 1 MiB", [BlockRequest(Op.WRITE, 100, largest, data)]),
        ("a flush", [BlockRequest(Op.FLUSH)]),
        ("a read of 1 MiB", [BlockRequest(Op.READ, 100, largest, back)]),
    ]
    parts = [bytearray(BLOCK_SIZE) for _ in range(QUEUE_DEPTH)]
    reads = [BlockRequest(Op.READ, 100 + number, 1, part) for number, part in enumerate(parts)]
    steps += [(f"{QUEUE_DEPTH} reads at once", reads), ("an unmap", [BlockRequest(Op.UNMAP, 100, 8)])]
    for what, requests in steps:
        wrong = [status for status in disk.run(*requests) if status is not Status.OK]
        if wrong:
            return f"{what} " + ("did not end" if wrong[0] is None else f"ended with {wrong[0].name}")
    if back != data or b"".join(parts) != data[: BLOCK_SIZE * QUEUE_DEPTH]:
        return "what it read is not what was written"
    return ""


class _Wire:
    """Takes every second frame at once, and the others when it is asked again."""

    def __init__(self) -> None:
        self.on_room: Callable[[], Any] = lambda: None
        self.sent: list[bytes] = []
        self._busy = False

    def send(self, frame: bytes) -> bool:
        self._busy = not self._busy
        if self._busy:
            self.sent.append(bytes(frame))
        return self._busy


def _drive_nic(driver: Driver, model: str) -> str:
    wire, received = _Wire(), list[bytes]()
    uplink = driver.attach(model, wire, lambda frame: received.append(bytes(frame)))
    frames = [_FRAME + bytes((number,)) for number in range(3)]
    taken = [frame for frame in frames if uplink.transmit(memoryview(frame))]
    for _ in range(2 * len(frames)):
        wire.on_room()
    if not taken or wire.sent != taken:
        return "frames that it took did not come out, in their order"
    uplink.arrived(_FRAME)
    if received != [_FRAME]:
        return "a frame that came in did not arrive"
    return "" if uplink.waiting() == [] else "frames that were sent still wait in it"


if __name__ == "__main__":
    main()
