"""Integration services where there is no VMBus: management calls the guest's own objects, on the guest's thread.

The same orders and the same answers as :mod:`partitions.parent.integration_orders`. A guest's answer comes back through
the loop of the host; one that does not come in time is one that does not answer. No guest is ever waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from partitions.child.services import Services
from partitions.heartbeats import Heartbeat
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import kvp
from vmbus_emu.protocol.ic import Beat
from vmbus_emu.protocol.kvp import Item, Op, Pool, Request

#: Seconds between two samples of the time; the first ones come quicker.
FIRST_SAMPLE_S, SAMPLE_S = 0.25, 5.0

Send = Callable[[dict[str, Any]], Any]
Outcome = dict[str, Any]


class Thread(Protocol):
    """A guest as this module needs it."""

    name: str
    loop: Loop
    alive: bool

    @property
    def services(self) -> Services: ...
    def begin_shut_down(self, patience_s: float) -> None: ...


class MonolithServices:
    """``loop`` and ``send`` are the host's. ``guests`` by name, as they are at any moment."""

    def __init__(self, loop: Loop, send: Send, guests: Mapping[str, Thread], heartbeat_s: float) -> None:
        self._loop = loop
        self._send = send
        self._guests = guests
        self._heartbeat_s = heartbeat_s
        self._hearts: dict[str, Heartbeat] = {}
        self._told: dict[str, str | None] = {}

    def started(self, guest: Thread) -> None:
        """A guest is up."""
        heart = self._hearts[guest.name] = Heartbeat()
        self._beat(guest, heart)
        self._call(guest, lambda: guest.services.clock.step(time.time_ns()))
        self._loop.call_later(FIRST_SAMPLE_S, self._sample, guest, FIRST_SAMPLE_S)

    @staticmethod
    def _call(guest: Thread, call: Callable[[], Any]) -> None:
        guest.loop.call_soon_threadsafe(call)

    # -- heartbeat and time -----------------------------------------------------------------------------

    def _beat(self, guest: Thread, heart: Heartbeat) -> None:
        if not guest.alive or self._hearts.get(guest.name) is not heart:
            if self._hearts.get(guest.name) is heart:
                heart.gone()
                self._tell(guest.name, heart)
            return
        beat = heart.beat()
        self._tell(guest.name, heart)
        self._call(guest, lambda: self._loop.call_soon_threadsafe(self._heard, guest, heart, beat))
        self._loop.call_later(self._heartbeat_s, self._beat, guest, heart)

    def _heard(self, guest: Thread, heart: Heartbeat, beat: Beat) -> None:
        heart.heard(Beat(beat.sequence + 1))
        self._tell(guest.name, heart)

    def _tell(self, vm: str, heart: Heartbeat) -> None:
        if heart.state != self._told.get(vm):
            self._told[vm] = heart.state
            self._send({"t": "heartbeat", "vm": vm, "state": heart.state or ""})

    def _sample(self, guest: Thread, pause_s: float) -> None:
        if guest.alive and self._guests.get(guest.name) is guest:
            asked = time.monotonic_ns()
            now = time.time_ns()
            self._call(guest, lambda: guest.services.clock.sample(now + time.monotonic_ns() - asked))
            self._loop.call_later(pause_s, self._sample, guest, min(2 * pause_s, SAMPLE_S))

    # -- orders -----------------------------------------------------------------------------------------

    def order(self, order: Mapping[str, Any]) -> None:
        """``id``, ``vm``, ``do``, ``timeout_s``, and what that needs."""
        answered = False

        def answer(ok: bool, why: str = "", items: list[list[Any]] | None = None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._send({"t": "integration_done", "id": order["id"], "ok": ok, "why": why, "items": items or []})

        def later(*outcome: Any) -> None:
            self._loop.call_soon_threadsafe(answer, *outcome)

        guest = self._guests.get(order["vm"])
        if guest is None or not guest.alive:
            answer(False, f"{order['vm']} is not running")
            return
        self._loop.call_later(order["timeout_s"], answer, False, f"{order['vm']} does not answer")
        # What nobody waits for any more is not done either.
        self._call(guest, lambda: answered or self._on_its_thread(guest, order, later))

    @staticmethod
    def _on_its_thread(guest: Thread, order: Mapping[str, Any], answer: Callable[..., Any]) -> None:
        services = guest.services
        match order["do"]:
            case "shutdown":
                services.shut_down = guest.begin_shut_down
                answer(services.power_off(min(1.0, order["grace_s"] / 2), "asked for by management"), "")
            case "cut":
                guest.alive = False
                guest.loop.stop()
                answer(True)
            case "freeze":
                services.freeze(lambda ok: answer(ok, "" if ok else "its kernel log says why"))
            case "thaw":
                answer(services.thaw(), "it was not frozen any more")
            case "kvp":
                answer(*_kvp(services, order))


def _kvp(services: Services, order: Mapping[str, Any]) -> tuple[bool, str, list[list[Any]]]:
    key, value, store = order.get("key", ""), order.get("value"), services.kvp
    if value is not None:
        item = Item(key, value)
        if not kvp.fits(item):
            return False, "a key has 1 to 255 characters, and a value up to 1023", []
        status, _ = store.asked(Request(Op.SET, Pool.EXTERNAL, 0, item))
        return not status, "it has too many keys", [[int(Pool.EXTERNAL), key, value]]
    items = [[pool, *item] for pool in order["pools"] for item in store.pool(Pool(pool)).items()]
    return True, "", [item for item in items if not key or item[1] == key]
