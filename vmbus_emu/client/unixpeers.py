"""Which Unix socket is connected to which: by the kernel's own tables, over netlink (sock_diag(7), unix_diag).

/proc/net/unix has paths, but says of no connection who is at its other end.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DUMP = 0x301                                     # a request, for all of them
_DONE, _ERROR = 3, 2
_SHOW_PEER = 4
_PEER = 2
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ENTRY = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_INODE = struct.Struct("=I")
_DEADLINE_S = 2.0
_BUFFER = 1 << 16


def unix_peers() -> dict[int, int] | None:
    """Inode -> inode of the other end, of all connected Unix sockets; ``None`` if this kernel does not tell."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_PEER, 0xFFFFFFFF, 0xFFFFFFFF)
    peers: dict[int, int] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_DEADLINE_S)
            netlink.sendall(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
            while True:
                found = read_entries(netlink.recv(_BUFFER))
                if found is None:
                    return peers
                peers |= found
    except (OSError, ValueError):
        return None


def read_entries(data: bytes) -> dict[int, int] | None:
    """The connections in one datagram of the answer; ``None`` if it ends the answer. ``ValueError``: a refusal."""
    found: dict[int, int] = {}
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind = _HEADER.unpack_from(data, at)[:2]
        if kind == _DONE:
            return None
        if kind == _ERROR or size < _HEADER.size:
            raise ValueError("the kernel does not tell the ends of Unix sockets")
        body = data[at + _HEADER.size : at + size]
        if len(body) >= _ENTRY.size:
            peer = _peer(body[_ENTRY.size :])
            if peer:
                found[_ENTRY.unpack_from(body)[4]] = peer
        at += size + 3 & ~3
    return found


def _peer(attributes: bytes) -> int:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if kind == _PEER and size == _ATTRIBUTE.size + _INODE.size <= len(attributes) - at:
            return int(_INODE.unpack_from(attributes, at + _ATTRIBUTE.size)[0])
        at += max(size, _ATTRIBUTE.size) + 3 & ~3
    return 0
