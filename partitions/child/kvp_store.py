"""What a guest and its host tell each other by key and value: the guest's pools.

The pools are those of Hyper-V (:class:`vmbus_emu.protocol.kvp.Pool`): the host writes the external ones, the guest its
own; ``auto`` is what the guest says of itself, computed when it is asked for. They live in the guest's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmbus_emu.protocol import ic, kvp
from vmbus_emu.protocol.ic import Status
from vmbus_emu.protocol.kvp import Item, Op, Pool, Request

#: Keys in one pool; Linux's daemon has no limit, and a host shall not fill a guest's memory.
MAX_KEYS = 1024
#: Who may write which pool.
_OF_HOST = frozenset((Pool.EXTERNAL, Pool.AUTO_EXTERNAL))


class KvpStore:
    """``auto()`` gives the pool of that name."""

    def __init__(self, auto: Callable[[], Mapping[str, str]]) -> None:
        self._auto = auto
        self._pools: dict[Pool, dict[str, str]] = {pool: {} for pool in Pool if pool is not Pool.AUTO}

    def pool(self, pool: Pool) -> Mapping[str, str]:
        return self._auto() if pool is Pool.AUTO else self._pools[pool]

    def set_own(self, item: Item) -> bool:
        """The guest sets one of its own. ``False``: it does not fit, or there are too many."""
        return self._set(Pool.GUEST, item)

    def delete_own(self, key: str) -> bool:
        return self._pools[Pool.GUEST].pop(key, None) is not None

    def _set(self, pool: Pool, item: Item) -> bool:
        held = self._pools[pool]
        if not kvp.fits(item) or (item.key not in held and len(held) >= MAX_KEYS):
            return False
        held[item.key] = item.value
        return True

    def asked(self, request: Request) -> tuple[Status, Request]:
        """The host asks: how it went, and the request with what was asked for in it."""
        if request.pool not in Pool.__members__.values() or request.op in (Op.GET_IP, Op.SET_IP):
            return Status.NOT_SUPPORTED, request
        pool, item = Pool(request.pool), request.item
        match request.op:
            case Op.GET:
                value = self.pool(pool).get(item.key)
                if value is None:
                    return Status.NOT_FOUND, request
                return Status.OK, request._replace(item=Item(item.key, value))
            case Op.ENUMERATE:
                items = list(self.pool(pool).items())
                if request.position >= len(items):
                    return Status.NO_MORE_ITEMS, request
                return Status.OK, request._replace(item=Item(*items[request.position]))
            case Op.SET if pool in _OF_HOST:
                return (Status.OK if self._set(pool, item) else Status.FAIL), request
            case Op.DELETE if pool in _OF_HOST:
                found = self._pools[pool].pop(item.key, None) is not None
                return (Status.OK if found else Status.NOT_FOUND), request
        return Status.FAIL, request

    def serve(self, body: bytes, version: ic.Version, respond: Callable[[int, bytes], object]) -> None:
        """The same by message."""
        request = kvp.decode(body)
        if request is None:
            respond(Status.FAIL, body)
            return
        status, answer = self.asked(request)
        respond(status, kvp.encode(answer) if status is Status.OK else body)
