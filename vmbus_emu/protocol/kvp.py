"""Key-value exchange: the bodies of its messages (protocol sheet 6). Pure data; decoders are total.

Every body is ``op, pool, 2 bytes``, and then what the operation needs. Keys and values are UTF-16LE; their sizes
count bytes, the closing zero included. The layout is the same in versions 3.0 to 5.0.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

KEY_BYTES: Final = 512
VALUE_BYTES: Final = 2048

_HEAD: Final = struct.Struct("<BBxx")
_INDEX: Final = struct.Struct("<I")
_VALUE: Final = struct.Struct(f"<III{KEY_BYTES}s{VALUE_BYTES}s")
_KEY: Final = struct.Struct(f"<I{KEY_BYTES}s")


class Op(enum.IntEnum):
    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3
    GET_IP = 4
    SET_IP = 5


class Pool(enum.IntEnum):
    EXTERNAL = 0            #: the host writes, the guest reads
    GUEST = 1               #: the guest's own, for the host to read
    AUTO = 2                #: what the guest says of itself
    AUTO_EXTERNAL = 3       #: what the host says of itself


class ValueType(enum.IntEnum):
    SZ = 1
    EXPAND_SZ = 2
    U32 = 4
    U64_LINUX = 8
    U64 = 11


_NUMBERS: Final = {ValueType.U32: 4, ValueType.U64_LINUX: 8, ValueType.U64: 8}


class Item(NamedTuple):
    """A key with its value. A number arrives as its decimal text."""

    key: str
    value: str = ""


class Request(NamedTuple):
    """``position``: of ENUMERATE alone. ``item``: of SET; of GET and DELETE its key."""

    op: int
    pool: int
    position: int = 0
    item: Item = Item("")


Buffer = bytes | bytearray | memoryview


def fits(item: Item) -> bool:
    """Whether a key is a key and both parts find room."""
    texts = item.key, item.value
    if not item.key or any("\0" in text for text in texts):
        return False
    try:
        key, value = (text.encode("utf-16-le") for text in texts)
    except UnicodeEncodeError:
        return False
    return len(key) <= KEY_BYTES - 2 and len(value) <= VALUE_BYTES - 2


def _packed(item: Item) -> bytes:
    key, value = (f"{text}\0".encode("utf-16-le") for text in item)
    return _VALUE.pack(ValueType.SZ, len(key), len(value), key, value)


def encode(request: Request) -> bytes:
    """The body of a request, or of the answer to one with what was asked for in ``item``, which must :func:`fits`."""
    head = _HEAD.pack(request.op, request.pool)
    match request.op:
        case Op.ENUMERATE:
            return head + _INDEX.pack(request.position) + _packed(request.item)
        case Op.DELETE:
            key = f"{request.item.key}\0".encode("utf-16-le")
            return head + _KEY.pack(len(key), key)
    return head + _packed(request.item)


def decode(body: Buffer) -> Request | None:
    """``None``: too short, an operation that does not exist, or a size beyond its field. Operations on IP addresses are
    not looked into."""
    if len(body) < _HEAD.size:
        return None
    op, pool = _HEAD.unpack_from(body)
    rest = memoryview(body)[_HEAD.size :]
    match op:
        case Op.GET_IP | Op.SET_IP:
            return Request(op, pool)
        case Op.DELETE:
            if len(rest) < _KEY.size:
                return None
            size, raw = _KEY.unpack_from(rest)
            key = _text(raw, size)
            return None if key is None else Request(op, pool, 0, Item(key))
        case Op.ENUMERATE:
            if len(rest) < _INDEX.size:
                return None
            item = _item(rest[_INDEX.size :])
            return None if item is None else Request(op, pool, _INDEX.unpack_from(rest)[0], item)
        case Op.GET | Op.SET:
            item = _item(rest)
            return None if item is None else Request(op, pool, 0, item)
    return None


def _item(raw: memoryview) -> Item | None:
    if len(raw) < _VALUE.size:
        return None
    value_type, key_size, value_size, raw_key, raw_value = _VALUE.unpack_from(raw)
    key = _text(raw_key, key_size)
    value: str | None
    if value_type in _NUMBERS:
        value = str(int.from_bytes(raw_value[: _NUMBERS[value_type]], "little"))
    else:
        value = _text(raw_value, value_size)
    return None if key is None or value is None else Item(key, value)


def _text(raw: bytes, size: int) -> str | None:
    """``size`` bytes of text, which may end earlier, at a zero; what is no UTF-16 is replaced."""
    if size > len(raw) or size % 2:
        return None
    return raw[:size].decode("utf-16-le", "replace").partition("\0")[0]
