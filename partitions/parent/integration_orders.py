"""What management wants of one guest, carried out through its integration components.

An order has an end, always: ``{"ok", "why", "items"}`` (``items``: pool, key and value of each, for key-value
exchange). Loaded with the first order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from partitions.parent.ic_session import Answer, IcSession
from partitions.parent.integration import IntegrationVsp
from vmbus_emu.loop import Loop
from vmbus_emu.protocol import ic, kvp
from vmbus_emu.protocol.ic import Status, Vss, VssOp
from vmbus_emu.protocol.kvp import Item, Op, Pool, Request
from vmbus_emu.task import Future, Task

#: How long a component may take to be there, and to answer.
READY_S = 2.0
#: Of a pool, so many are read.
MOST_ITEMS = 2048

Done = Callable[[Mapping[str, Any]], Any]


class Failed(Exception):
    """Why an order was not carried out, in one line."""


def carry_out(vsp: IntegrationVsp, loop: Loop, order: Mapping[str, Any], done: Done) -> None:
    """``order``: ``vm``, ``do`` (``shutdown``, ``freeze``, ``thaw``, ``kvp``), ``timeout_s`` (for each answer), and
    what that needs."""
    Task(loop, _carried_out(vsp, loop, order, done))


async def _carried_out(vsp: IntegrationVsp, loop: Loop, order: Mapping[str, Any], done: Done) -> None:
    service = _Service(vsp, loop, order["vm"], order["timeout_s"])
    items: list[list[Any]] = []
    try:
        match order["do"]:
            case "shutdown":
                body = ic.encode_shutdown(ic.Shutdown(0, round(order["grace_s"]), 0, "asked for by management"))
                await service.ask("shutdown", body)
            case "freeze":
                await service.ask("vss", ic.encode_vss(Vss(VssOp.HOT_BACKUP)))
                await service.freeze()
            case "thaw":
                await service.ask("vss", ic.encode_vss(Vss(VssOp.THAW)))
            case "kvp":
                items = await _kvp(service, order)
    except Failed as failed:
        done({"ok": False, "why": str(failed), "items": []})
        return
    done({"ok": True, "why": "", "items": items})


class _Service:
    """The components of one guest."""

    def __init__(self, vsp: IntegrationVsp, loop: Loop, vm: str, timeout_s: float) -> None:
        self._vsp = vsp
        self._loop = loop
        self._vm = vm
        self._timeout_s = timeout_s

    async def ask(self, name: str, body: bytes) -> Answer:
        """The answer to one request, whose status is 0. Raises :class:`Failed`."""
        answer = await self.asked(name, body)
        if answer.status:
            raise Failed(f"{self._vm} refused ({name}, status {answer.status:#x})")
        return answer

    async def asked(self, name: str, body: bytes) -> Answer:
        """The same with any status."""
        came: Future[Answer | None] = Future()
        session = await self._session(name)
        if not session.request(body, came.resolve):
            raise Failed(f"{self._vm} does not answer: too much was asked of its {name} service already")
        timer = self._loop.call_later(self._timeout_s, came.resolve, None)
        answer = await came
        timer.cancel()
        if answer is None:
            raise Failed(f"the {name} service of {self._vm} does not answer")
        return answer

    async def freeze(self) -> None:
        """A guest that is late is told that nobody waits for it any more."""
        try:
            await self.ask("vss", ic.encode_vss(Vss(VssOp.FREEZE)))
        except Failed:
            session = await self._session("vss")
            session.request(ic.encode_vss(Vss(VssOp.THAW)), lambda answer: None)
            raise

    async def _session(self, name: str) -> IcSession:
        ready: Future[IcSession | str] = Future()
        self._vsp.session(self._vm, name, min(READY_S, self._timeout_s), ready.resolve)
        session = await ready
        if isinstance(session, str):
            raise Failed(session)
        return session


async def _kvp(service: _Service, order: Mapping[str, Any]) -> list[list[Any]]:
    """Every item of the pools in ``order["pools"]``; of ``order["key"]`` alone, if that is given; or that one set to
    ``order["value"]``."""
    key, value = order.get("key", ""), order.get("value")
    items: list[list[Any]] = []
    if value is not None:
        item = Item(key, value)
        if not kvp.fits(item):
            raise Failed("a key has 1 to 255 characters, and a value up to 1023")
        await service.ask("kvp", kvp.encode(Request(Op.SET, Pool.EXTERNAL, 0, item)))
        return [[int(Pool.EXTERNAL), key, value]]
    for pool in order["pools"]:
        if key:
            found = await _item(service, Request(Op.GET, pool, 0, Item(key)), Status.NOT_FOUND)
            items += [[pool, *found]] if found is not None else []
            continue
        for index in range(MOST_ITEMS):
            found = await _item(service, Request(Op.ENUMERATE, pool, index), Status.NO_MORE_ITEMS)
            if found is None:
                break
            items.append([pool, *found])
    return items


async def _item(service: _Service, request: Request, none: Status) -> Item | None:
    """What the guest says; ``None``: there is no such item."""
    if request.item.key and not kvp.fits(request.item):
        return None
    answer = await service.asked("kvp", kvp.encode(request))
    if answer.status == none:
        return None
    said = kvp.decode(answer.body)
    if answer.status or said is None:
        raise Failed(f"the kvp service failed (status {answer.status:#x})")
    return said.item
